"""Records, languages, tokenizers, chat templates, the atlas, packing and loaders."""
