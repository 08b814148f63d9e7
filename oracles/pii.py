#!/usr/bin/env python3
"""Labelled texts with personal data.

Writes  crates/corpus/tests/golden/pii.jsonl
Run     VENV/bin/python oracles/pii.py                     the golden file
        VENV/bin/python oracles/pii.py ROWS SEED > OUT     more of it, to be measured; about a minute for 20,000
        VENV needs presidio-evaluator 0.3.2 and faker 40.

Two sources, named in each row:

  presidio  the sentence templates that presidio-evaluator ships (MIT), filled by its PresidioSentenceFaker. Its labels are
            mapped to our classes; names, places, organisations, dates, domains and drivers' licences have none. The golden
            file has values of Faker only and rows with a label only; the larger runs use the package's own records of
            people and places, whose telephone numbers come from 30 countries, and all rows.
  faker     sentences below, filled by Faker's providers: the classes that the templates do not have, or have in one form
            only. Numbers, check digits and formats are Faker's.

Keys and tokens of services have no generator in either; crates/corpus/src/pii/tests.rs has cases of them.
A row is {"source", "text", "spans": [[start, end, class, kind]]} with offsets in bytes of UTF-8.
"""
import contextlib
import json
import pathlib
import random
import sys

from faker import Faker
from presidio_evaluator.data_generator import PresidioSentenceFaker

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/corpus/tests/golden/pii.jsonl"
GOLDEN_ROWS, GOLDEN_SEED = 700, 1
CLASSES = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "national_id",
    "IP_ADDRESS": "ip_address",
}

# The locale, Faker's provider, the number's kind, and sentences in which people would give it. Left out are locales
# without a provider of their own (Faker then makes up an American number) and those whose numbers break the state's rules
# on purpose (en_GB: prefix ZZ) or otherwise (ko_KR: months and days that no calendar has).
NATIONAL = [
    ("en_US", "ssn", "us_ssn", ["My SSN is {}.", "Social security number: {}", "Applicant {} was approved."]),
    ("fr_FR", "ssn", "fr_nir", ["Mon numéro de sécurité sociale est le {}.", "NIR : {}"]),
    ("es_ES", "nif", "es_dni", ["Mi DNI es {}.", "Identificado con {}, con domicilio en Madrid."]),
    ("es_ES", "nie", "es_nie", ["Mi NIE es {}.", "Identificada con {}, con domicilio en Sevilla."]),
    ("it_IT", "ssn", "it_codice_fiscale", ["Il mio codice fiscale è {}.", "CF: {}"]),
    ("de_DE", "rvnr", "de_rentenversicherung", ["Versicherungsnummer: {}", "Meine Nummer bei der Rentenversicherung ist {}."]),
    ("de_AT", "ssn", "at_sozialversicherung", ["SVNR: {}", "Meine Sozialversicherungsnummer ist {}."]),
    ("nl_NL", "ssn", "nl_bsn", ["Mijn BSN is {}.", "Burgerservicenummer: {}"]),
    ("nl_BE", "ssn", "be_rijksregister", ["Rijksregisternummer {}", "Mijn rijksregisternummer is {}."]),
    ("pl_PL", "ssn", "pl_pesel", ["PESEL: {}", "Mój numer PESEL to {}."]),
    ("de_CH", "ssn", "ch_ahv", ["AHV-Nummer: {}", "Meine AHV-Nummer lautet {}."]),
    ("sv_SE", "ssn", "se_personnummer", ["Personnummer: {}", "Mitt personnummer är {}."]),
    ("fi_FI", "ssn", "fi_hetu", ["Henkilötunnus: {}", "Hetuni on {}."]),
    ("no_NO", "ssn", "no_fodselsnummer", ["Fødselsnummer: {}", "Mitt fødselsnummer er {}."]),
    ("cs_CZ", "birth_number", "cz_rodne_cislo", ["Rodné číslo: {}", "Mé rodné číslo je {}."]),
    ("sk_SK", "birth_number", "cz_rodne_cislo", ["Rodné číslo: {}", "Moje rodné číslo je {}."]),
    ("ro_RO", "ssn", "ro_cnp", ["CNP: {}", "CNP-ul meu este {}."]),
    ("hr_HR", "ssn", "hr_oib", ["OIB: {}", "Moj OIB je {}."]),
    ("et_EE", "ssn", "lt_ee_code", ["Isikukood: {}", "Minu isikukood on {}."]),
    ("tr_TR", "ssn", "tr_kimlik", ["TC kimlik no: {}", "Kimlik numaram {}."]),
    ("en_CA", "ssn", "ca_sin", ["My SIN is {}.", "Social insurance number: {}"]),
    ("pt_BR", "ssn", "br_cpf", ["CPF: {}", "Meu CPF é {}."]),
    ("zh_CN", "ssn", "cn_resident", ["身份证号码:{}", "我的身份证是{}。"]),
    ("he_IL", "ssn", "il_teudat_zehut", ["תעודת זהות: {}"]),
]
PHONES = {
    "en_US": ["Call me at {}.", "Tel. {}", "my number is {} if anything comes up"],
    "en_GB": ["Ring me on {} after six.", "Phone: {}", "you'll find me at {}"],
    "de_DE": ["Meine Nummer ist {}.", "Tel.: {}", "Bitte rufen Sie unter {} an."],
    "fr_FR": ["Appelez-moi au {}.", "Tél. : {}", "joignable au {} le matin"],
    "es_ES": ["Mi teléfono es {}.", "Llámame al {}."],
    "it_IT": ["Il mio cellulare è {}.", "Telefono: {}"],
    "nl_NL": ["Mijn mobiel is {}.", "Bel me op {}."],
    "pl_PL": ["Telefon: {}", "Mój telefon to {}."],
    "pt_BR": ["Meu telefone é {}.", "Celular: {}"],
    "en_AU": ["Call {} any time.", "Mobile: {}"],
    "en_IN": ["My mobile number is {}.", "Phone {}"],
    "zh_CN": ["我的手机是{}。", "电话:{}"],
    "ja_JP": ["電話は{}です。", "携帯:{}"],
    "de_CH": ["Telefon: {}", "Meine Handynummer ist {}."],
    "sv_SE": ["Telefon: {}", "Ring mig: {}"],
}
IBANS = ["de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "de_CH", "en_GB", "no_NO", "fi_FI", "de_AT", "pt_PT"]


def row(source, text, spans):
    """Offsets in characters become offsets in bytes."""
    at = lambda i: len(text[:i].encode())
    spans = sorted([at(start), at(end), kind, name] for start, end, kind, name in spans)
    return {"source": source, "text": text, "spans": spans}


def presidio(n, seed, golden):
    with contextlib.redirect_stdout(sys.stderr):
        records = [{"unused": "x"}] if golden else None
        faker = PresidioSentenceFaker("en_US", 0.05, base_records=records, random_seed=seed)
        for alias in [("name", "person"), ("ssn", "us_ssn")] if golden else []:
            faker.add_provider_alias(*alias)
        for sample in faker.generate_new_fake_sentences(n):
            spans = [
                (s.start_position, s.end_position, CLASSES[s.entity_type], s.entity_type.lower())
                for s in sample.spans
                if s.entity_type in CLASSES
            ]
            if spans or not golden:
                yield row("presidio", sample.full_text, spans)


def own(n, seed):
    fakers = {}

    def of(locale):
        if locale not in fakers:
            fakers[locale] = Faker(locale)
        return fakers[locale]

    Faker.seed(seed)
    choose = random.Random(seed)
    for _ in range(n):
        what = choose.choice(["national", "national", "phone", "iban", "card", "email", "ip", "url", "none"])
        if what == "none":
            # Numbers, prose and code without anything to find.
            words = of("en_US")
            text = choose.choice(
                [
                    lambda: words.paragraph(nb_sentences=3),
                    lambda: f"Order {words.pyint(10000, 99999)} of {words.date()} came to {words.pydecimal(4, 2, positive=True)} euros.",
                    lambda: f"{words.pyint()} + {words.pyint()} = {words.pyint()}; {words.pyfloat(3, 9)} is about {words.pyint(1, 9)}/{words.pyint(2, 99)}",
                    lambda: f"commit {words.sha1()} at {words.iso8601()} by uuid {words.uuid4()}",
                    lambda: f"version {words.pyint(0, 9)}.{words.pyint(0, 20)}.{words.pyint(0, 99)} of {words.file_name()}",
                    lambda: f"ISBN {words.isbn13()}, {words.pyint(1000000, 9999999):,} copies, {words.time()}",
                ]
            )()
            yield row("faker", text, [])
            continue
        if what == "national":
            locale, provider, name, sentences = choose.choice(NATIONAL)
            value, kind = getattr(of(locale), provider)(), "national_id"
        elif what == "phone":
            locale = choose.choice(list(PHONES))
            value, kind, name, sentences = of(locale).phone_number(), "phone", locale, PHONES[locale]
        elif what == "iban":
            value, kind, name = of(choose.choice(IBANS)).iban(), "iban", "iban"
            if choose.random() < 0.5:
                value = " ".join(value[i : i + 4] for i in range(0, len(value), 4))
            sentences = ["IBAN {}", "Please pay to {} by Friday.", "Kontoverbindung: {}."]
        elif what == "card":
            value, kind, name = of("en_US").credit_card_number(), "card", "card"
            if choose.random() < 0.5 and len(value) == 16:
                value = choose.choice([" ", "-"]).join(value[i : i + 4] for i in range(0, 16, 4))
            sentences = ["Card number {} please.", "I paid with {} yesterday.", "{} exp 04/27"]
        elif what == "email":
            locale = choose.choice(list(PHONES))
            value, kind, name = of(locale).email(), "email", "email"
            sentences = ["Write to {}.", "<{}>", "mailto:{}", "{} is my address", "Contact ({}) for more"]
        elif what == "ip":
            version = choose.choice(["ipv4", "ipv6"])
            value, kind, name = getattr(of("en_US"), version)(), "ip_address", version
            sentences = ["Blocked {} again", "from {}, port 22", "ssh root@{}", "[{}] GET /index.html"]
        else:
            words = of("en_US")
            value, kind, name = f"{words.user_name()}:{words.password(special_chars=False)}", "url_credentials", "url"
            sentences = ["git clone https://{}@%s/x.git" % words.domain_name(), "postgres://{}@%s:5432/db" % words.domain_name()]
        before, after = choose.choice(sentences).split("{}")
        text = before + value + after
        yield row("faker", text, [(len(before), len(before) + len(value), kind, name)])


def main():
    golden = len(sys.argv) == 1
    n, seed = (GOLDEN_ROWS, GOLDEN_SEED) if golden else map(int, sys.argv[1:3])
    rows = [*presidio(n, seed, golden), *own(n // 2 if golden else n, seed)]
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows)
    if golden:
        OUT.write_text(lines)
    else:
        sys.stdout.write(lines)


if __name__ == "__main__":
    main()
