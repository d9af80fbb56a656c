"""How the launchers of several nodes find each other and talk."""
