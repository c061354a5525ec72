"""From a template's text to the plan of its builds, with the place of everything that is wrong."""
