"""The wheel holds each file of the packages, byte by byte, and no other. Usage: wheel_files.py SOURCE WHEEL"""

import sys
import zipfile
from pathlib import Path

PACKAGES = ("core", "policies", "profiles", "sim", "real", "experiments")  # in the wheel they lie in `servetwin`
LEFT_OUT = {"servetwin/experiments/measured/README.md"}  # a page of the documentation

source, wheel = Path(sys.argv[1]), zipfile.ZipFile(sys.argv[2])
files = {p.relative_to(source).as_posix(): p for p in source.rglob("*") if p.is_file()}
there = {f"servetwin/{name}": p for name, p in files.items() if name.split("/")[0] in PACKAGES}
there |= {name: p for name, p in files.items() if name.startswith("servetwin/")}
packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
faults = [f"{name} is not in the wheel" for name in sorted(there.keys() - packed - LEFT_OUT)]
faults += [f"{name} is in the wheel, and no file of the packages" for name in sorted(packed - there.keys())]
other = [name for name in sorted(packed & there.keys()) if wheel.read(name) != there[name].read_bytes()]
faults += [f"{name} is another in the wheel" for name in other]
if faults or not packed:
    sys.exit("\n".join(faults or ["the wheel is empty"]))
sys.stdout.write(f"the wheel has the {len(packed)} files of the packages\n")
