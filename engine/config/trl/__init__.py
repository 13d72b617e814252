"""Files written for TRL: its names of settings in ours, subject by subject."""
