"""One file a sub-command of `kljudge`, each a thin layer over a function of the package."""
