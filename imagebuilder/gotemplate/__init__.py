"""Go's text/template, as templates use it: tokens, tree, execution, functions, time layouts."""
