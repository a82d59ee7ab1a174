"""The operation `attention`: its definition, its backends and its signature."""
