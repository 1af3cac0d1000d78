"""Documents, tokenized and packed into rows of one length."""
