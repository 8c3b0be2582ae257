"""Access file and tokens, TLS material, reloading, masking of secrets."""
