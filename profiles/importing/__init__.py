"""Profiles of language models without a GPU: from the tables of other tools, from a CSV file, from formulas.
Begin with `write`.

| `formats`    | a file per format: how a source becomes times of steps; a new one is a file there and nothing else |
| `settings`   | what the user says beside the source: model, device, engine, in vLLM's names |
| `devices`    | the devices that are known by name (``devices.yaml``) |
| `imported`   | what a format gives: times of steps, where they come from, what they are known to be off by |
| `grids`      | times of steps at places, as the tables of a profile |
| `plausible`  | whether a time can be that of a step of that model on that device |
| `write`      | `import_profile`, from a format's name and a source to the content of a profile file |
"""
