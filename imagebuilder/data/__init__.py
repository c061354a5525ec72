"""Data that travels with the program: distros, kickstarts and builds. In a checkout they stand at its top level."""
