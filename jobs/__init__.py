"""Entry points for `ray job submit`: one thin module a stage."""
