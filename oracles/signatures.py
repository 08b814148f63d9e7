"""Holds signed releases against OpenSSF's own tool, model-signing.

    pip install model-signing==1.1.1 pyopenssl        (1.1.1 forgets to ask for the second)
    python oracles/signatures.py golden crates/governance/tests/golden/oms
    python oracles/signatures.py check RUN/release KEY.pub STILLROOM [SEED]

`golden` writes a small directory that the tool signed with a key that is thrown away, and the public key.

`check` takes a signed release, the public key and the program. The tool has to accept the signature; the program has to
accept one that the tool makes of the same release; and both have to refuse each of 60 changed copies, but for those that
the tool leaves alone by design, which are counted.
"""

import hashlib
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

SIGNATURE = "model.sig"
MUTATIONS = 60


def new_key(folder, curve=ec.SECP256R1()):
    """A key in two files of the folder."""
    key = ec.generate_private_key(curve)
    private, public = folder / "key", folder / "key.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def sign(model, private):
    config = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=True)
    signer = signing.Config().use_elliptic_key_signer(private_key=private)
    signer.set_hashing_config(config).sign(model, model / SIGNATURE)


def refusal_of_tool(model, public):
    """What the tool finds wrong, or None."""
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(model, model / SIGNATURE)
    except Exception as error:  # The tool has no error type of its own; a broken bundle raises whatever its parser raises.
        return repr(error)[:200]
    return None


def refusal_of_program(program, model, public):
    """What the program finds wrong, or None."""
    done = subprocess.run(
        [program, "verify", str(model), "--public-key", str(public)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    assert done.returncode == 65, done
    return done.stderr[:200]


def golden(folder):
    # By parts of paths `sub/b` comes before `sub.txt`, by characters it does not.
    files = {"config.json": "{}", "empty": "", "model.safetensors": "weights", "sub/b": "b", "sub.txt": "c", "é.txt": "d"}
    golden_by(folder, "signed", ec.SECP256R1(), files)
    golden_by(folder, "signed-p384", ec.SECP384R1(), {"config.json": "{}"})


def golden_by(folder, name, curve, files):
    model = folder / name
    shutil.rmtree(model, ignore_errors=True)
    for path, text in files.items():
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        private, public = new_key(pathlib.Path(scratch), curve)
        sign(model, private)
        shutil.copy(public, folder / f"{name}.pub")
    assert refusal_of_tool(model, folder / f"{name}.pub") is None


def files_of(model):
    return sorted(path for path in model.rglob("*") if path.is_file())


def reseal(model):
    """Writes the manifest's digests anew, as somebody would who covers a change."""
    path = model / "provenance" / "manifest.json"
    manifest = json.loads(path.read_text())
    record = manifest["predicate"]
    for subject in manifest["subject"] + record["weights"]:
        if subject["name"].startswith("release/"):
            file = model / subject["name"].removeprefix("release/")
            subject["digest"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "manifest.json.sha256").write_text(f"{digest}  manifest.json\n")


def flip(path, draw):
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    data[at] ^= draw.randrange(1, 256)
    path.write_bytes(bytes(data))


def mutate(model, draw, others):
    """Changes one thing; says what."""
    files = files_of(model)
    full = [path for path in files if path.stat().st_size > 0]
    path = draw.choice(full)
    kind = draw.choice(
        ["flip", "flip signature", "rename", "swap", "drop", "add", "reseal", "signature of another", "truncate"]
    )
    name = path.relative_to(model)
    if kind == "flip":
        flip(path, draw)
    elif kind == "flip signature":
        flip(model / SIGNATURE, draw)
    elif kind == "rename":
        path.rename(path.with_name(path.name + "x"))
    elif kind == "swap":
        other = draw.choice([other for other in full if other.read_bytes() != path.read_bytes()])
        ours, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(ours)
    elif kind == "drop":
        path.unlink()
    elif kind == "add":
        (model / f"added-{draw.randrange(1000)}").write_text("")
    elif kind == "reseal":
        flip(draw.choice([p for p in full if "provenance" not in p.parts and p.name != SIGNATURE]), draw)
        reseal(model)
    elif kind == "signature of another":
        shutil.copy(draw.choice(others), model / SIGNATURE)
    else:
        data = path.read_bytes()
        path.write_bytes(data[: draw.randrange(len(data))])
    return f"{kind} {name}"


def check(release, public, program, seed):
    wrong = 0

    def expect(says, holds):
        nonlocal wrong
        wrong += not holds
        print("ok  " if holds else "FAIL", says)

    expect("the tool accepts the release", refusal_of_tool(release, public) is None)
    expect("the program accepts it", refusal_of_program(program, release, public) is None)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        private, other_public = new_key(scratch)
        theirs = scratch / "theirs"
        shutil.copytree(release, theirs)
        (theirs / SIGNATURE).unlink()
        sign(theirs, private)
        expect("the program accepts the tool's signature", refusal_of_program(program, theirs, other_public) is None)
        expect("not with the first key", refusal_of_program(program, theirs, public) is not None)
        draw = random.Random(seed)
        both = 0
        for number in range(MUTATIONS):
            copy = scratch / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(release, copy)
            what = mutate(copy, draw, [theirs / SIGNATURE])
            ours, tools = refusal_of_program(program, copy, public), refusal_of_tool(copy, public)
            both += ours is not None and tools is not None
            expect(f"{number}: {what}: program {ours is not None}, tool {tools is not None}", ours is not None)
        print(f"refused by both: {both} of {MUTATIONS}")
    return wrong


if __name__ == "__main__":
    if sys.argv[1] == "golden":
        golden(pathlib.Path(sys.argv[2]))
    else:
        given = [pathlib.Path(argument) for argument in sys.argv[2:5]]
        sys.exit(check(*given, int(sys.argv[5]) if len(sys.argv) > 5 else 1) > 0)
