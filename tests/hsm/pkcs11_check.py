"""Runs pkcs11-check from PyPI on a module: python3 pkcs11_check.py VENV MODULE OUTPUT. The PIN is in P11TEST_PIN.

Makes the environment VENV first, unless it is there. The package asks for Python 3.12 only for a few lines of newer syntax; they are
rewritten for the Python 3.11 of Debian 12. Prints a line of figures; failed tests are in OUTPUT, one a line.
"""
import json, pathlib, re, subprocess, sys

venv, module, output = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])

def install():
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    packages = ["pkcs11-check==0.2.3", "python-pkcs11==0.10.1"]
    subprocess.run([venv / "bin/pip", "install", "-q", "--ignore-requires-python", *packages], check=True)
    if sys.version_info >= (3, 12):
        return
    for file in venv.glob("lib/python3*/site-packages/pkcs11_check/**/*.py"):
        text = file.read_text()
        new = re.sub(r"^type (\w+) =", r"\1 =", text, flags=re.M)
        if re.search(r"^def \w+\[T\]\(", new, re.M):
            new = re.sub(r"^(def \w+)\[T\]\(", r"\1(", new, flags=re.M)
            new = re.sub(r"^(from __future__ import annotations\n)", r"\1from typing import TypeVar as _TypeVar\nT = _TypeVar('T')\n", new, flags=re.M)
        if new != text:
            file.write_text(new)

if not (venv / "bin/pkcs11-check").exists():
    install()
work = output.with_suffix(".work")
work.mkdir(exist_ok=True)
# Every file of tests in a process of its own: a module that crashes must not end the run.
command = [venv / "bin/pkcs11-check", "test", "-m", module, "--skip-slow", "--isolation", "file", "-t", "60", "-o", "json",
           "--output-file", work / "results.json"]
result = subprocess.run(command, cwd=work, capture_output=True)
results = json.loads((work / "results.json").read_text())
summary = results["summary"]
if not summary["passed"]:
    print(result.stdout.decode(errors="replace")[-3000:], result.stderr.decode(errors="replace")[-3000:], file=sys.stderr)
    sys.exit(1)
bad = ("failed", "error", "crashed", "timeout")
failed = [test["nodeid"] for unit in results["units"] for test in unit.get("tests", []) if test["outcome"] in bad]
# A file whose process died has no tests that did.
failed += [unit["target"] for unit in results["units"] if unit.get("status") in ("crashed", "timeout")]
output.write_text("".join(sorted(f"{name.split('testcases/')[-1]}\n" for name in failed)))
print(" ".join(f"{kind} {summary[kind]}" for kind in ("passed", *bad, "xfailed", "skipped")))
