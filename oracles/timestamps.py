"""Timestamps (RFC 3161) made and checked by others: the openssl program and rfc3161-client.

    pip install rfc3161-client==1.0.9 cryptography model-signing==1.1.1 pyopenssl
    python oracles/timestamps.py golden crates/governance/tests/golden/timestamps
    python oracles/timestamps.py serve FOLDER PORT
    python oracles/timestamps.py check RUN ROOT.pem [KEY.pub]

`golden` makes services with keys that are thrown away, lets `openssl ts` stamp with each of them, and writes tokens that
nobody should accept by `openssl cms`. `expected.json` has what both say of each: what rfc3161-client
reads in it, and whether it and `openssl ts` accept it under the root. Neither reads signers that are named by
their key; the client asks neither for the binding to the certificate nor for a key of any size.

`serve` is a service on this machine, with the certificate to trust in FOLDER/root.pem: something to try a recipe with.

`check` holds every token that a run has stored, of its heads and of its release's signature, against both; with the public
key, the signature with the token in it also against model-signing.
"""

import base64
import datetime
import hashlib
import http.server
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from rfc3161_client import VerifierBuilder, decode_timestamp_response

MESSAGE = b"what was stamped\n"
PEM = serialization.Encoding.PEM
DAY = datetime.timedelta(days=1)
TST_INFO = "1.2.840.113549.1.9.16.1.4"
STAMPING = [ExtendedKeyUsageOID.TIME_STAMPING]
CONFIG = """
[tsa]
default_tsa = service
[service]
serial = {folder}/serial
signer_digest = {digest}
default_policy = 1.3.6.1.4.1.55555.1
digests = sha256
accuracy = secs:1, millisecs:500, microsecs:100
clock_precision_digits = {digits}
ordering = no
tsa_name = {tsa_name}
ess_cert_id_chain = no
ess_cert_id_alg = {ess}
"""


def openssl(*words, stdin=None):
    done = subprocess.run(["openssl", *map(str, words)], input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def run(*words):
    code, out, said = openssl(*words)
    assert code == 0, (words, said)
    return out


def certificate(name, key, issuer=None, usages=None, critical=True, authority=False, days=(-1, 3650)):
    """A certificate of `key`; `issuer` is the certificate and the key above it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    above, above_key = issuer or (None, key)
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False), True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above_key.public_key()), critical=False)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=critical)
    return builder.sign(above_key, hashes.SHA256())


class Service:
    """A timestamp service whose files lie in a folder."""

    def __init__(self, folder, name, key, issuer, chain=(), **options):
        self.folder, self.certificate = folder / name, certificate(f"{name} service", key, issuer, **options)
        self.folder.mkdir()
        (self.folder / "serial").write_text("1000\n")
        (self.folder / "tsa.pem").write_bytes(self.certificate.public_bytes(PEM))
        (self.folder / "chain.pem").write_bytes(b"".join(c.public_bytes(PEM) for c in chain))
        (self.folder / "key.pem").write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self.has_chain = bool(chain)

    def stamp(self, query, digest="sha256", ess="sha256", digits=3, tsa_name="yes"):
        """The answer to a query's file."""
        config = self.folder / "config"
        config.write_text(CONFIG.format(folder=self.folder, digest=digest, ess=ess, digits=digits, tsa_name=tsa_name))
        words = ["ts", "-reply", "-config", config, "-queryfile", query, "-signer", self.folder / "tsa.pem"]
        words += ["-inkey", self.folder / "key.pem"]
        if self.has_chain:
            words += ["-chain", self.folder / "chain.pem"]
        return run(*words)

    def sign(self, content, *options):
        """An answer with any content, signed as CMS."""
        path = self.folder / "content"
        path.write_bytes(content)
        words = ["cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-md", "sha256", "-in", path]
        words += ["-signer", self.folder / "tsa.pem", "-inkey", self.folder / "key.pem", *options]
        return answer(run(*words))


def answer(token):
    """An answer that grants a token."""
    body = bytes([0x30, 0x03, 0x02, 0x01, 0x00]) + token
    return bytes([0x30, 0x82]) + len(body).to_bytes(2, "big") + body


def new_query(folder, message, *options):
    """A query whose nonce has eight bytes, the first of them with the bits 01."""
    data, query = folder / "message", folder / "query.tsq"
    data.write_bytes(message)
    while True:
        run("ts", "-query", "-data", data, "-sha256", "-cert", "-out", query, *options)
        nonce = query.read_bytes()[-13:-3]
        if nonce[:2] == b"\x02\x08" and 0x40 <= nonce[2] < 0x80:
            return query


def opinion(response, message, roots):
    """What rfc3161-client reads, and whether it accepts."""
    try:
        read = decode_timestamp_response(response)
        info = read.tst_info
    except Exception as error:  # Its parser raises what it likes.
        return {"accepts": False, "says": str(error)[:120]}
    says = {
        "unix_s": int(info.gen_time.timestamp()),
        "accuracy_us": 0 if info.accuracy is None else (info.accuracy.seconds or 0) * 1_000_000
        + (info.accuracy.millis or 0) * 1_000 + (info.accuracy.micros or 0),
    }
    builder = VerifierBuilder()
    for root in roots:
        builder = builder.add_root_certificate(root)
    try:
        builder.build().verify_message(read, message)
        return {"accepts": True, **says}
    except Exception as error:
        return {"accepts": False, "says": str(error)[:120], **says}


def golden(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    root_key = rsa.generate_private_key(65537, 2048)
    root = certificate("some root", root_key, authority=True)
    other = certificate("another root", ec.generate_private_key(ec.SECP256R1()), authority=True)
    middle_key = ec.generate_private_key(ec.SECP384R1())
    middle = certificate("some middle", middle_key, (root, root_key), authority=True)
    by_root, by_middle = (root, root_key), (middle, middle_key)
    rsa_key, small = rsa.generate_private_key(65537, 3072), rsa.generate_private_key(65537, 1024)
    p256, p384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    answers = {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        query = new_query(scratch, MESSAGE)
        made = Service(scratch, "rsa", rsa_key, by_root, usages=STAMPING)
        for digest in ("sha256", "sha384", "sha512"):
            answers[f"good-rsa-{digest}"] = made.stamp(query, digest)
        answers["good-rsa-sha1-binding"] = made.stamp(query, ess="sha1", digits=0, tsa_name="no")
        made = Service(scratch, "p256", p256, by_root, usages=STAMPING)
        answers["good-p256-sha256"] = made.stamp(query, digits=6)
        answers["good-p256-sha384"] = made.stamp(query, "sha384")
        chain = Service(scratch, "p384", p384, by_middle, chain=[middle, root], usages=STAMPING)
        answers["good-p384-chain"] = chain.stamp(query, "sha384")
        token = scratch / "token.tsr"
        token.write_bytes(answers["good-p256-sha256"])
        content = scratch / "content.der"
        signed = run("ts", "-reply", "-in", token, "-token_out")
        (scratch / "token.p7s").write_bytes(signed)
        run("cms", "-verify", "-noverify", "-inform", "DER", "-in", scratch / "token.p7s", "-out", content)
        info = content.read_bytes()
        as_stamp = ["-econtent_type", TST_INFO, "-cades"]
        # What nobody should accept.
        answers["bad-by-key-id"] = made.sign(info, *as_stamp, "-keyid")
        answers["bad-no-binding"] = made.sign(info, "-econtent_type", TST_INFO)
        answers["bad-content-type"] = made.sign(info, "-cades")
        answers["bad-no-certificate"] = made.sign(info, *as_stamp, "-nocerts")
        answers["bad-garbage"] = made.sign(b"0\x03\x02\x01\x01", *as_stamp)
        server = [ExtendedKeyUsageOID.SERVER_AUTH]
        for name, options in {
            "bad-no-usage": {},
            "bad-other-usage": {"usages": server},
            "bad-more-usages": {"usages": STAMPING + server},
            "bad-not-critical": {"usages": STAMPING, "critical": False},
            "bad-expired": {"usages": STAMPING, "days": (-30, -1)},
            "bad-not-yet": {"usages": STAMPING, "days": (1, 30)},
        }.items():
            answers[name] = Service(scratch, name, p256, by_root, **options).sign(info, *as_stamp)
        foreign = Service(scratch, "foreign", p256, None, usages=STAMPING)
        answers["bad-self-signed"] = foreign.sign(info, *as_stamp)
        not_authority = (made.certificate, p256)
        answers["bad-by-no-authority"] = Service(
            scratch, "below", p384, not_authority, usages=STAMPING
        ).sign(info, *as_stamp, "-certfile", made.folder / "tsa.pem")
        answers["bad-small-key"] = Service(scratch, "small", small, by_root, usages=STAMPING).sign(info, *as_stamp)
        (folder / "query.tsq").write_bytes(query.read_bytes())
        refused = new_query(scratch, MESSAGE, "-sha512")
        answers["refused"] = made.stamp(refused)
    (folder / "stamped").write_bytes(MESSAGE)
    (folder / "root.pem").write_bytes(root.public_bytes(PEM))
    (folder / "other.pem").write_bytes(other.public_bytes(PEM))
    (folder / "p256.pem").write_bytes(made.certificate.public_bytes(PEM))
    expected = {}
    for name, response in sorted(answers.items()):
        (folder / f"{name}.tsr").write_bytes(response)
        accepted = openssl_accepts(response, MESSAGE, folder / "root.pem")[0]
        expected[name] = {"openssl_accepts": accepted, "micros": micros(response), **opinion(response, MESSAGE, [root])}
        print(f"{name:24}{len(response):6} bytes", expected[name])
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def serve(folder, port):
    folder.mkdir(parents=True, exist_ok=True)
    root_key, key = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 3072)
    root = certificate("some root", root_key, authority=True)
    (folder / "root.pem").write_bytes(root.public_bytes(PEM))
    service = Service(folder, f"one-{port}", key, (root, root_key), usages=STAMPING)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            query = folder / "query.tsq"
            query.write_bytes(self.rfile.read(int(self.headers["content-length"])))
            answered = service.stamp(query)
            self.send_response(200)
            self.send_header("content-type", "application/timestamp-reply")
            self.send_header("content-length", str(len(answered)))
            self.end_headers()
            self.wfile.write(answered)

    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def openssl_accepts(response, message, root_path):
    with tempfile.TemporaryDirectory() as scratch:
        data, reply = pathlib.Path(scratch) / "data", pathlib.Path(scratch) / "reply"
        data.write_bytes(message)
        reply.write_bytes(response)
        code, _, said = openssl("ts", "-verify", "-data", data, "-in", reply, "-CAfile", root_path)
    return code == 0, said


def micros(response):
    """The fraction of the second that openssl reads; the client leaves it out."""
    with tempfile.NamedTemporaryFile() as reply:
        reply.write(response)
        reply.flush()
        _, out, _ = openssl("ts", "-reply", "-in", reply.name, "-text")
    fraction = re.search(rb"Time stamp: \S+ +\d+ \d+:\d+:\d+\.?(\d*) ", out)
    return int(fraction[1].ljust(6, b"0")) if fraction else None


def check_token(response, message, root_path, says):
    accepted, said = openssl_accepts(response, message, root_path)
    roots = x509.load_pem_x509_certificates(root_path.read_bytes())
    tool = opinion(response, message, roots)
    holds = accepted and tool["accepts"]
    print("ok  " if holds else "FAIL", says, "" if holds else (said[-300:], tool))
    return holds


def check(run_folder, root, public):
    heads = {}
    for line in (run_folder / "log" / "heads.jsonl").read_bytes().splitlines():
        heads[hashlib.sha256(line).hexdigest()] = line
    wrong, checked = 0, 0
    for line in (run_folder / "log" / "stamps.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry.get("token"):
            response = answer(base64.b64decode(entry["token"]))
            wrong += not check_token(response, heads[entry["head"]], root, f"head {entry['head'][:12]}")
            checked += 1
    release = run_folder / "release"
    bundle = json.loads((release / "model.sig").read_text()) if (release / "model.sig").exists() else None
    if bundle:
        signature = base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"])
        for stamp in bundle["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"]:
            response = base64.b64decode(stamp["signedTimestamp"])
            wrong += not check_token(response, signature, root, "the signature")
            checked += 1
    if public:
        from model_signing import verifying

        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(release, release / "model.sig")
        print("ok   model-signing accepts the signature with its timestamp")
    print(f"{checked} tokens, {wrong} wrong")
    return wrong == 0 and checked > 0


if __name__ == "__main__":
    if sys.argv[1] == "golden":
        golden(pathlib.Path(sys.argv[2]))
    elif sys.argv[1] == "serve":
        serve(pathlib.Path(sys.argv[2]), int(sys.argv[3]))
    else:
        key = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 else None
        sys.exit(not check(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), key))
