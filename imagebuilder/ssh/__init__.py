"""The SSH communicator and its parts."""
