"""Things to run and to read: the embedded world, recipes for real runs."""
