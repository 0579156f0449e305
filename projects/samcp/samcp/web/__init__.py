"""Web page of `samcp web` (extra `web`)."""
