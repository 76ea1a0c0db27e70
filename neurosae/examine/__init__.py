"""Description of features: when they fire, for what, and with which others."""
