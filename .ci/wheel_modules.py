"""Each module of the installed package can be imported without any extra, or says which one to install; those of real
execution want torch or vLLM, and the fixtures pytest, whose user has it."""

import importlib
import pkgutil
import sys

import servetwin

#: What may be missing, by the package or module that wants it.
MAY_WANT = {
    "servetwin.real.": {"torch", "vllm", "vllm_omni", "diffusers", "transformers"},
    "servetwin.pytest_plugin": {"pytest"},
}

if "site-packages" not in str(servetwin.__path__):
    sys.exit(f"this is not what was installed: {servetwin.__path__}")
imported, faults = 0, []
for module in pkgutil.walk_packages(servetwin.__path__, "servetwin."):
    if module.name.endswith(".__main__"):
        continue
    try:
        importlib.import_module(module.name)
        imported += 1
    except Exception as e:
        wanted = {name for part, names in MAY_WANT.items() if module.name.startswith(part) for name in names}
        if "pip install 'servetwin[" not in str(e) and getattr(e, "name", None) not in wanted:
            faults.append(f"{module.name}: {type(e).__name__}: {e}")
if faults or not imported:
    sys.exit("\n".join(faults or ["no module was found"]))
sys.stdout.write(f"{imported} modules can be imported\n")
