"""What profiles are made of: tables of seconds, single costs, and how files are read. Begin with `latency_table`.

=================  ==========================================================================================
`latency_table`    seconds by batch size: exact where measured, straight lines between, never beyond
`costs`, `cost`    the registry of measured terms that are no tables, and one such term
`cost_names`       an entry of that registry, and what names are made of
`field_types`      what every part of a profile file is made of
`loading`          reads YAML into a schema, and tells its faults by file and key
=================  ==========================================================================================
"""
