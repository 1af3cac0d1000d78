"""Files behind any fsspec URL: folders, conditional puts and staging."""
