#!/usr/bin/env python3
"""Golden verdicts on answers as models write them, by math-verify and lm-eval.

Writes  crates/corpus/tests/golden/verifiers.jsonl
        crates/corpus/tests/golden/json_schema.jsonl
Run     VENV/bin/python oracles/verifiers.py
        VENV needs math-verify 0.9, lm-eval 0.4.13 (without its dependencies: `pip install --no-deps lm-eval`), pyyaml and
        jsonschema 4.26; it takes seconds.

`numeric` rows: does a reply have the answer, as math-verify's parse and verify have it, and as lm-eval's task gsm8k has it
by its filters strict-match and flexible-extract (patterns and what is ignored are read from the task's own file).
`choice` rows: the letter that math-verify's StringExtractionConfig finds, and the one that the pattern of lm-eval's task
mmlu_pro finds. The replies are in the shapes that models write: worked out in steps, in Markdown, in LaTeX, cut off.
Schema rows: a schema and values, with what python-jsonschema's Draft202012Validator says of each.
"""
import importlib.util
import json
import pathlib
import re

import jsonschema
import yaml
from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "crates/corpus/tests/golden"
TASKS = pathlib.Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks"


class Loader(yaml.SafeLoader):
    """Reads a task's file, whose tags name functions."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def task(path):
    return yaml.load((TASKS / path).read_text(), Loader)


GSM8K = task("gsm8k/gsm8k.yaml")
FILTERS = {f["name"]: f["filter"][0] for f in GSM8K["filter_list"]}
IGNORED = GSM8K["metric_list"][0]["regexes_to_ignore"]
MMLU_PRO = task("mmlu_pro/_default_template_yaml")["filter_list"][0]["filter"][0]["regex_pattern"]


def extracted(name, reply):
    """As lm_eval.filters.extraction.RegexFilter does it."""
    rule = FILTERS[name]
    found = re.compile(rule["regex_pattern"]).findall(reply)
    if not found:
        return "[invalid]"
    found = found[rule.get("group_select", 0)]
    if isinstance(found, tuple):
        found = [part for part in found if part][0]
    return found.strip()


def lm_eval(name, reply, answer):
    """As lm_eval.api.metrics.exact_match_hf_evaluate does it."""
    given, wanted = extracted(name, reply), answer
    for ignored in IGNORED:
        given, wanted = re.sub(ignored, "", given), re.sub(ignored, "", wanted)
    return given.lower() == wanted.lower()


def math_verify(reply, answer):
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    gold = parse(answer if "\\" not in answer else f"${answer}$", configs)
    return bool(verify(gold, parse(reply, configs)))


# Answer, then replies.
NUMERIC = [
    ("18", [
        "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18",
        "She makes 9 * 2 = $18 every day at the farmers' market.\n\n#### $18",
        "So she has 9 eggs left.\n9 x $2 = $18\n\nThe answer is $\\boxed{18}$.",
        "**Step 1:** 16 - 7 = 9\n**Step 2:** 9 × 2 = 18\n\n**Answer: 18**",
        "The answer is 18.",
        "Therefore, Janet makes $18 every day.",
        "#### 18.00",
        "#### 18 dollars",
        "### Final answer\n\n\\[\\boxed{18}\\]",
        "#### Final answer\n\n$\\boxed{18}$",
        "The final answer is: $\\boxed{\\text{18 dollars}}$",
        "\\boxed{18\\text{ dollars}}",
        "\\boxed{\\$18}",
        "\\[ 9 \\times 2 = 18 \\]",
        "Answer: 9 * 2 = 18",
        "She makes 18. This takes 2 steps to see.",
        "The answer is 18. (We multiplied 9 by 2.)",
        "Final Answer: eighteen",
        "#### 19",
        "The answer is 17.",
        "16 - 3 - 4 = 9. 9 * 2 =",
        "I cannot work this out.",
        "",
        "\\boxed{x = 18}",
        "\\boxed{18} or \\boxed{20}",
        "First I thought \\boxed{20}, but no: \\boxed{18}",
        "\\boxed{2 \\times 9}",
        "\\boxed{18 \\pm 1}",
        "\\boxed{18, 20}",
    ]),
    ("70000", [
        "#### 70,000",
        "#### 70000",
        "He made a profit of $70,000.",
        "The answer is $\\boxed{70{,}000}$",
        "The answer is $\\boxed{70,\\!000}$",
        "The answer is $\\boxed{70\\,000}$",
        "The profit is \\boxed{\\$70,000}",
        "It is 7 \\times 10^4, so $\\boxed{7 \\times 10^4}$",
        "The answer is 7e4.",
        "\\boxed{70.000}",
        "\\boxed{7000}",
    ]),
    ("540", ["#### 540 meters", "He runs 540 meters a week.", "\\boxed{540 \\text{ m}}", "\\boxed{540\\,\\mathrm{m}}", "\\boxed{540\\ \\text{m}}"]),
    ("-5", ["#### -5", "The answer is -5.", "$\\boxed{-5}$", "$x = -5$", "It falls to −5 °C", "The answer is $-$5.", "#### 5", "10 - 15 = -5"]),
    ("0.5", [
        "#### 0.5",
        "#### .5",
        "The probability is 1/2.",
        "$\\boxed{\\frac{1}{2}}$",
        "$\\boxed{\\dfrac12}$",
        "The answer is $\\frac{2}{4}$.",
        "\\boxed{0.50}",
        "The answer is 50%.",
        "$\\boxed{50\\%}$",
        "$\\boxed{5 \\times 10^{-1}}$",
        "$\\boxed{0.05}$",
    ]),
    ("\\frac{3}{4}", ["$\\boxed{\\frac{3}{4}}$", "The answer is 3/4.", "\\boxed{0.75}", "$\\boxed{\\frac{6}{8}}$", "$\\boxed{\\frac34}$", "$\\boxed{-\\frac{3}{4}}$", "$\\boxed{\\tfrac{3}{4}\\pi}$"]),
    ("\\frac{7}{4}", ["$\\boxed{1\\frac{3}{4}}$", "The answer is 1 3/4 cups.", "$\\boxed{1.75}$", "$\\boxed{\\frac{7}{4}}$"]),
    ("25%", ["The answer is 25%.", "#### 25", "$\\boxed{25\\%}$", "\\boxed{0.25}", "\\boxed{25 \\text{ percent}}", "\\boxed{2.5\\%}"]),
    ("1234.5", ["#### 1,234.50", "The total is 1.234,50 euros.", "$\\boxed{1234.5}$", "$\\boxed{\\frac{2469}{2}}$", "1,234,5"]),
    ("5", [
        "\\boxed{5^\\circ}",
        "\\boxed{5 \\text{ cm}^2}",
        "\\boxed{5}\n\nLet me know if you need 2 more examples.",
        "Let $x$ be the number. Then $x + 3 = 8$, so $x = 5$.",
        "The answer is $5.",
        "The answer is **5**.",
        "**Final Answer**\n\n5",
        "<think>maybe 7</think>\n5",
        "5 apples",
        "\\boxed{\\sqrt{25}}",
        "\\boxed{5\\sqrt{2}}",
        "\\boxed{(5)}",
        "\\boxed{5!}",
        "\\boxed{5\\pi}",
        "There are 5 of the 12 left, the answer is 5 of 12.",
    ]),
    ("1000000", ["$\\boxed{10^6}$", "The answer is 1 million.", "#### 1,000,000", "\\boxed{10^{6}}", "1e6"]),
]

# The right letter is B in all.
CHOICE = [
    "B", "(B)", "B.", "B)", "**B**", "The answer is B.", "The answer is (B).", "Answer: B", "**Answer:** (B)", "The correct answer is **B**.",
    "\\boxed{B}", "The final answer is $\\boxed{\\text{B}}$", "$\\boxed{\\textbf{(B)}}$", "B. Paris", "(B) Paris is the capital.",
    "Let's think. A is wrong, since it is too small.\n\nThe answer is (B).", "So the best option is B.", "Option B", "Final answer: B",
    "Among the choices, (A) fails and (B) holds.", "answer is b", "The answer is: B) Paris", "**B. Paris**",
    "A man walks into a bar.", "I do not know.", "The answer is A.", "A",
]

SCHEMAS = [
    ({"type": "integer"}, [1, 1.0, 1.5, "1", None, True]),
    ({"type": ["string", "null"]}, ["", None, 0]),
    ({"enum": [1, "a", None, {"b": [1]}]}, [1, 1.0, "a", None, {"b": [1.0]}, {"b": []}, False, 0]),
    ({"const": {"a": 1, "b": 2}}, [{"b": 2, "a": 1}, {"a": 1}, 1]),
    ({"const": False}, [False, 0, None]),
    ({"minimum": 1, "exclusiveMaximum": 3.5, "multipleOf": 0.5}, [1, 0.5, 3.5, 3, 2.25, "x"]),
    ({"multipleOf": 3}, [9, 10, 9.0, 0, -3]),
    # Not 4.35: python-jsonschema divides in binary and says no. Here a multiple is one in decimals.
    ({"multipleOf": 0.01}, [0.25, 1.005]),
    ({"minLength": 2, "maxLength": 3}, ["é", "éé", "😀😀😀", "abcd", 12345]),
    ({"pattern": "^[A-Z]{2}\\d+$"}, ["AB1", "aAB1", "AB", 1]),
    ({"items": {"type": "number"}, "minItems": 1, "maxItems": 2, "uniqueItems": True}, [[], [1], [1, 1.0], [1, 2], [1, 2, 3], ["a"], "a"]),
    ({"prefixItems": [{"type": "string"}, {"type": "number"}], "items": False}, [[], ["a"], ["a", 1], ["a", 1, 2], [1]]),
    ({"contains": {"type": "string"}, "minContains": 2, "maxContains": 3}, [["a"], ["a", "b"], ["a", 1, "b"], ["a", "b", "c", "d"], {}]),
    ({"contains": {"const": 1}, "minContains": 0}, [[], [2]]),
    (
        {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
        [{}, {"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": "x"}, {"a": 1, "c": 1}, [], {"a": None}],
    ),
    (
        {"properties": {"x": True}, "patternProperties": {"^n_": {"type": "number"}}, "additionalProperties": {"type": "string"}},
        [{"x": 1}, {"n_a": 1}, {"n_a": "1"}, {"y": "1"}, {"y": 1}],
    ),
    ({"propertyNames": {"maxLength": 2}, "minProperties": 1, "maxProperties": 2}, [{}, {"a": 1}, {"abc": 1}, {"a": 1, "b": 2, "c": 3}]),
    ({"dependentRequired": {"card": ["address"]}}, [{}, {"card": 1}, {"card": 1, "address": ""}]),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, [{}, {"a": 1}, {"a": 1, "b": 1}]),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [0, 1, 3]),
    ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["a", 5, 4, None]),
    ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}, [2, 3, 6, 1, "a"]),
    ({"not": {"type": "string"}}, ["a", 1]),
    ({"if": {"properties": {"k": {"const": "a"}}, "required": ["k"]}, "then": {"required": ["x"]}, "else": {"required": ["y"]}}, [{"k": "a"}, {"k": "a", "x": 1}, {"k": "b"}, {"y": 1}]),
    ({"then": {"type": "string"}}, [1]),
    (
        {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "integer"}}, "required": ["v"]}}, "$ref": "#/$defs/node"},
        [{"v": 1}, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {}}, 1],
    ),
    ({"properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["name"]}, [{"name": 1, "kids": [{"name": 2}]}, {"name": 1, "kids": [{}]}]),
    ({"definitions": {"a/b": {"type": "string"}}, "$ref": "#/definitions/a~1b"}, ["x", 1]),
    ({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "t", "description": "d", "default": 1, "examples": [1]}, [None, 1]),
    (True, [1]),
    (False, [1]),
]


def main():
    rows = []
    for answer, replies in NUMERIC:
        for reply in replies:
            verdicts = {
                "math_verify": math_verify(reply, answer),
                "lm_eval_strict": lm_eval("strict-match", reply, answer),
                "lm_eval_flexible": lm_eval("flexible-extract", reply, answer),
            }
            rows.append({"kind": "numeric", "answer": answer, "reply": reply, **verdicts})
    letters = [StringExtractionConfig(strings=tuple("ABCDEFGHIJ"))]
    for reply in CHOICE:
        found = re.findall(MMLU_PRO, reply)
        verdicts = {
            "math_verify": bool(verify(parse("B", letters), parse(reply, letters))),
            "lm_eval_strict": bool(found) and found[0] == "B",
        }
        rows.append({"kind": "choice", "answer": "B", "reply": reply, **verdicts})
    schemas = []
    for schema, values in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(schema)
        judge = jsonschema.Draft202012Validator(schema)
        schemas.extend({"schema": json.dumps(schema), "value": json.dumps(v), "valid": judge.is_valid(v)} for v in values)
    for name, lines in [("verifiers", rows), ("json_schema", schemas)]:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (GOLDEN / f"{name}.jsonl").write_text(text)
        print(name, len(lines))


if __name__ == "__main__":
    main()
