"""What numbers are made of, as hashes, so that no stored row is of something else. Begin with `file_digests`.

==================  =======================================================================================
`file_digests`      hashes of files, and of the code of ServeTwin below every package
`policy_imports`    importing a policy so that the code that runs is the code that was hashed
`policy_code`       a policy as this process loaded it: all that it was made of, and whether it is still so
`nondeterminism`    what of a policy no hash can hold: clocks, unseeded randomness, the environment
`stored_rows`       rows as they are kept, with checksums
==================  =======================================================================================
"""
