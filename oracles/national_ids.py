#!/usr/bin/env python3
"""Numbers of people that obey their state's rule or break it, judged by python-stdnum.

Writes  crates/corpus/tests/golden/national_ids.jsonl
Run     VENV/bin/python oracles/national_ids.py
        VENV needs only python-stdnum (2.2); it takes seconds.

For each kind candidates are drawn from a fixed seed: digits and letters in the number's form, with dates where it has them.
Six that stdnum finds valid are kept and six that it does not, three of these a valid one with one digit changed. A row is
{"kind", "text", "valid"}, the number behind a word that says what it is.
"""
import importlib
import json
import pathlib
import random

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/corpus/tests/golden/national_ids.jsonl"
EACH, TRIES = 6, 300_000

# Kind, stdnum's module, the form and the word. In a form # is a digit, @ a letter, ^ either of both, Y M D a date's digits.
KINDS = [
    ("us_ssn", "us.ssn", "###-##-####", "SSN"),
    ("uk_nhs", "gb.nhs", "### ### ####", "NHS"),
    ("fr_nir", "fr.nir", "1YYMM##########", "NIR"),
    ("es_dni", "es.dni", "########@", "DNI"),
    ("es_nie", "es.nie", "X#######@", "NIE"),
    ("it_codice_fiscale", "it.codicefiscale", "RSSMRA##A##H###@", "CF"),
    ("de_steuer_id", "de.idnr", "## ### ### ###", "IdNr"),
    ("nl_bsn", "nl.bsn", "#########", "BSN"),
    ("be_rijksregister", "be.nn", "YY.MM.DD-###.##", "rijksregisternummer"),
    ("pl_pesel", "pl.pesel", "YYMMDD#####", "PESEL"),
    ("ch_ahv", "ch.ssn", "756.####.####.##", "AHV"),
    ("se_personnummer", "se.personnummer", "YYMMDD-####", "personnummer"),
    ("fi_hetu", "fi.hetu", "DDMMYY-###^", "hetu"),
    ("no_fodselsnummer", "no.fodselsnummer", "DDMMYY#####", "fødselsnummer"),
    ("cz_rodne_cislo", "cz.rc", "YYMMDD/####", "rodné číslo"),
    ("ro_cnp", "ro.cnp", "1YYMMDD10####", "CNP"),
    ("bg_egn", "bg.egn", "YYMMDD####", "EGN"),
    ("hr_oib", "hr.oib", "###########", "OIB"),
    ("lt_ee_code", "lt.asmens", "3YYMMDD####", "asmens kodas"),
    ("pt_nif", "pt.nif", "#########", "NIF"),
    ("ie_pps", "ie.pps", "#######@", "PPS"),
    ("at_sozialversicherung", "at.vnr", "####DDMMYY", "SVNR"),
    ("tr_kimlik", "tr.tckimlik", "###########", "TC kimlik"),
    ("ca_sin", "ca.sin", "### ### ###", "SIN"),
    ("br_cpf", "br.cpf", "###.###.###-##", "CPF"),
    ("cn_resident", "cn.ric", "11010519YYMMDD###^", "身份证"),
    ("in_aadhaar", "in_.aadhaar", "#### #### ####", "Aadhaar"),
    ("za_id", "za.idnr", "YYMMDD####0##", "ID"),
    ("au_tfn", "au.tfn", "### ### ###", "TFN"),
    ("il_teudat_zehut", "il.idnr", "#########", "teudat zehut"),
]


def drawn(chance, form):
    date = {"Y": f"{chance.randint(50, 99):02}", "M": f"{chance.randint(1, 12):02}", "D": f"{chance.randint(1, 28):02}"}
    places = {key: iter(value) for key, value in date.items()}
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    made = {"#": "0123456789", "@": letters, "^": "0123456789" + letters}
    dated = "YY" in form
    return "".join(
        chance.choice(made[c]) if c in made else next(places[c]) if dated and c in places else c for c in form
    )


def main():
    chance, rows = random.Random(11), []
    for kind, module, form, word in KINDS:
        valid = importlib.import_module(f"stdnum.{module}").is_valid
        right, wrong = [], []
        for _ in range(TRIES):
            number = drawn(chance, form)
            kept = right if valid(number) else wrong
            if len(kept) < (EACH if kept is right else EACH // 2):
                kept.append(number)
            if len(right) == EACH and len(wrong) >= EACH // 2:
                break
        while len(wrong) < EACH:
            number = list(chance.choice(right))
            at = chance.choice([i for i, c in enumerate(number) if c.isdigit()])
            number[at] = chance.choice([d for d in "0123456789" if d != number[at]])
            if not valid("".join(number)):
                wrong.append("".join(number))
        for number, holds in [(n, True) for n in right] + [(n, False) for n in wrong]:
            rows.append({"kind": kind, "text": f"{word}: {number}", "valid": holds})
        print(kind, right[0], len(right), len(wrong))
    OUT.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
