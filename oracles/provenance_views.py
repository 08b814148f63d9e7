#!/usr/bin/env python3
"""Validates the documents of a release with the validators of their standards.

    pip install -r oracles/provenance_views.txt
    python oracles/provenance_views.py RELEASE... [--spdx-model DIR]

RELEASE is a release directory: README.md and provenance/. `crates/governance/tests/views/of_*` are two.

SPDX's JSON schema and shapes are read from https://spdx.org, or from DIR, which then has `spdx-context.jsonld`,
`spdx-json-schema.json` and `spdx-model.ttl` of version 3.0.1 (all three are in the repository spdx/spdx-spec). The
bindings of `spdx-python-model`, which are made from the same shapes, need neither.
"""

import argparse
import base64
import importlib.metadata
import io
import json
import pathlib
import sys
import tempfile
import urllib.request

SPDX = {
    "https://spdx.org/rdf/3.0.1/spdx-context.jsonld": "spdx-context.jsonld",
    "https://spdx.org/schema/3.0.1/spdx-json-schema.json": "spdx-json-schema.json",
    "https://spdx.org/rdf/3.0.1/spdx-model.ttl": "spdx-model.ttl",
}


def cyclonedx(release):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (release / "provenance/bom.cdx.json").read_text()
    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    assert error is None, error
    bom = json.loads(text)
    refs = []

    def walk(value):
        if isinstance(value, dict):
            refs.extend([value["bom-ref"]] if "bom-ref" in value else [])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(bom)
    assert len(refs) == len(set(refs)), "a bom-ref occurs twice"
    for dependency in bom["dependencies"]:
        for ref in [dependency["ref"], *dependency.get("dependsOn", [])]:
            assert ref in refs, f"`{ref}` is nothing's bom-ref"


def offline(directory):
    """Reads SPDX's own addresses from a directory."""
    import rdflib
    import rdflib.plugins.shared.jsonld.context as jsonld
    import spdx3_validate.core as core

    def read(url, *_, **__):
        return io.BytesIO((directory / SPDX[getattr(url, "full_url", url)]).read_bytes())

    urllib.request.urlopen = read
    core.urllib.request.urlopen = read
    jsonld.source_to_json = lambda source, *_, **__: (json.loads(read(source).read()), None)
    parse = rdflib.Graph.parse

    def local(self, source=None, **options):
        if isinstance(source, str) and source in SPDX:
            return parse(self, data=read(source).read(), format="turtle")
        return parse(self, source=source, **options)

    rdflib.Graph.parse = local


def spdx3(release):
    from spdx3_validate.main import spdx3validate

    assert spdx3validate([str(release / "provenance/bom.spdx3.json")]) == 0, "spdx3-validate"


def spdx3_bindings(release):
    from spdx_python_model import v3_0_1 as spdx

    objects = spdx.SHACLObjectSet()
    with open(release / "provenance/bom.spdx3.json", "rb") as file:
        spdx.JSONLDDeserializer().read(file, objects)
    missing = objects.link()
    missing = {m for m in missing if "NoAssertion" not in str(m)}
    assert not missing, missing
    for package in [*objects.foreach_type(spdx.ai_AIPackage), *objects.foreach_type(spdx.dataset_DatasetPackage)]:
        needed = ["releaseTime", "suppliedBy", "software_downloadLocation", "software_primaryPurpose"]
        for field in needed:
            assert getattr(package, field) is not None, (package.name, field)
        kinds = [
            r.relationshipType
            for r in objects.foreach_type(spdx.Relationship)
            if r.from_ is package or getattr(r.from_, "_id", r.from_) == package._id
        ]
        for kind in ["hasDeclaredLicense", "hasConcludedLicense"]:
            n = sum(str(k).endswith(kind) for k in kinds)
            assert n == 1, (package.name, kind, n)


def opened(line):
    """The statement of a line, out of its envelope where it is signed."""
    envelope = json.loads(line)
    if "payload" not in envelope:
        return line
    assert envelope["payloadType"] == "application/vnd.in-toto+json" and envelope["signatures"]
    return base64.b64decode(envelope["payload"], validate=True).decode()


def in_toto(release):
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import resource_descriptor_pb2
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    kinds = []
    for name in ["provenance.intoto.jsonl", "gate.intoto.jsonl"]:
        for line in (release / "provenance" / name).read_text().splitlines():
            line = opened(line)
            message = json_format.Parse(line, Message())
            Statement.copy_from_pb(message).validate()
            kinds.append(message.predicate_type)
            if message.predicate_type == "https://slsa.dev/provenance/v1":
                text = json_format.MessageToJson(message.predicate)
                provenance = json_format.Parse(text, provenance_pb2.Provenance())
                assert provenance.build_definition.build_type and provenance.run_details.builder.id
                assert provenance.run_details.metadata.started_on.seconds > 0
                for descriptor in provenance.build_definition.resolved_dependencies:
                    assert descriptor.name or descriptor.uri
            if message.predicate_type == "https://in-toto.io/attestation/svr/v0.2":
                predicate = json.loads(line)["predicate"]
                assert isinstance(predicate["properties"], list) and predicate["timeCreated"]
                for policy in predicate["verifier"]["policies"]:
                    json_format.ParseDict(policy, resource_descriptor_pb2.ResourceDescriptor())
    assert len(kinds) == 3, kinds


def croissant(release):
    """Where the release has a data set's description."""
    path = release / "provenance/croissant.json"
    if not path.exists():
        return "there is none"
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(path))
    assert not dataset.metadata.ctx.issues.errors, dataset.metadata.ctx.issues.errors


def card(release):
    from huggingface_hub import ModelCard

    card = ModelCard.load(release / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "text-generation" and data["license"], data
    if data["license"] == "other":
        assert data["license_name"], data
    assert not data.get("base_model_relation") or data["base_model"], data
    with tempfile.NamedTemporaryFile("w", suffix=".md") as file:
        file.write(str(card))
        file.flush()
        assert ModelCard.load(file.name).data.to_dict() == data


CHECKS = [
    ("CycloneDX 1.7, strict schema", "cyclonedx-python-lib", cyclonedx),
    ("SPDX 3.0.1, schema and shapes", "spdx3-validate", spdx3),
    ("SPDX 3.0.1, bindings and profiles", "spdx-python-model", spdx3_bindings),
    ("in-toto v1, SLSA v1, SVR v0.2", "in-toto-attestation", in_toto),
    ("Croissant", "mlcroissant", croissant),
    ("model card", "huggingface-hub", card),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release", nargs="+", type=pathlib.Path)
    parser.add_argument("--spdx-model", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.spdx_model:
        offline(arguments.spdx_model)
    failed = 0
    for release in arguments.release:
        print(release)
        for name, package, check in CHECKS:
            try:
                said = check(release) or "ok"
            except Exception as error:
                failed += 1
                said = f"FAILED: {type(error).__name__}: {str(error)[:2000]}"
            print(f"  {name} ({package} {importlib.metadata.version(package)}): {said}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
