"""The one dispatch class of all operators, and the table of rules that each of them fills."""
