"""Rules for rows of legacy files that both stores share."""
