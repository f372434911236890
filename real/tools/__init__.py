"""Tools for real. Begin with `script_tool`: a pool of threads whose calls run scripts in the sandbox.

==================  ======================================================================================
`script_tool`       the tool, its calls and its lane
`sandbox`           runs a script that nobody has read in a process of its own
`sandbox_child`     what that process runs: confines itself, says what the system allowed, runs the script
==================  ======================================================================================
"""
