"""A cache or a source as groups of rows that are read in any order."""
