package natty
