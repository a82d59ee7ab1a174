"""The operation `decode_attention`: its definition, its backends and its signature."""
