"""Which failures another attempt may mend, and which are final."""
