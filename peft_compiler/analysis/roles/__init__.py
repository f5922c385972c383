"""What each place of a captured model is for. One file answers one question."""
