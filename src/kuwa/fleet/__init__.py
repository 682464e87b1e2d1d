"""`kuwa up`: starts, watches and ends the programs on this machine, by command line only."""
