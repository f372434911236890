"""The formats, a file each, found by their names; the first line of each tells what it reads.

A file has `OPTIONS` that are its own (none: empty) and ``read(source, settings)``, which gives an
`servetwin.profiles.importing.imported.Imported`. A new format is a new file here and nothing else.
"""
