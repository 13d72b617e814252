"""Preference data from language models over HTTP: CLAIR, judges, stronger-preferred."""
