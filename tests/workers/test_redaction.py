"""Passwords are masked in URLs, DSNs and drivers' messages, addresses in published configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from basis_search.workers.redaction import redacted, redacted_url, without_addresses

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:pw@host:5/x", "postgresql://me:***@host:5/x"),
        ("postgresql://me:p@w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p:w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p/w?q@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p%40w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://:pw@host/x", "postgresql://:***@host/x"),
        ("postgresql://me@firm:pw@host/x", "postgresql://me@firm:***@host/x"),
        ("postgresql://me%40firm:pw@host/x", "postgresql://me%40firm:***@host/x"),
        ("postgresql://me:a%2Fb:c@d@host:5/x?sslpassword=zzz&a=b", "postgresql://me:***@host:5/x?sslpassword=***&a=b"),
        ("postgresql://host/x?a=b&PassWord=p@w&c=d", "postgresql://host/x?a=b&PassWord=***&c=d"),
        ("host=h password=pw dbname=x", "host=h password=*** dbname=x"),
        (r"password = 'p \' w' host=h", "password = *** host=h"),
        ("dbname=x password=a&b host=h", "dbname=x password=*** host=h"),
        ("storage: postgresql+psycopg://me:pw@host/x\nseed: 0", "storage: postgresql+psycopg://me:***@host/x\nseed: 0"),
        ("postgresql://us/er:secret@h", "postgresql://us/er:***@h"),
        ("postgresql://us?er:secret@h", "postgresql://us?er:***@h"),
        ("postgresql://me:pw@h/db and b@c", "postgresql://me:***@h/db and b@c"),
        ("grpc://host:13000 refused b@c", "grpc://host:13000 refused b@c"),
        ("postgresql://me:p@w?password=x@host/x", "postgresql://me:***"),
        ("postgresql://host:5/x?password=p@w&c=d", "postgresql://host:***&c=d"),
        ("postgresql://host/x?passwd=pw", "postgresql://host/x?passwd=***"),
        ("postgresql://host/x?pgpassword=pw&a=b", "postgresql://host/x?pgpassword=***&a=b"),
        ("PGPASSWORD=pw basis-search", "PGPASSWORD=*** basis-search"),
        ("host=h passwd=pw", "host=h passwd=***"),
        (r"host=h password=sec\ ret dbname=x", "host=h password=*** dbname=x"),
        ("host=h password='sec ret", "host=h password=***"),
        ("[a://me:pw@host, 'b://me:pw@host']", "[a://me:***@host, 'b://me:***@host']"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("postgresql://host/x", "postgresql://host/x"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("/runs/one/journal", "/runs/one/journal"),
    ],
)
def test_passwords_are_masked_and_nothing_else_is(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:p\nw@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p@\n1 w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:12 34@host/x", "postgresql://me:***@host/x"),
        ("postgresql://u s:pw@host/x", "postgresql://u s:***@host/x"),
        ("postgresql://host/x?password=p\nw&c=d", "postgresql://host/x?password=***&c=d"),
        ("host=h password=p\\\nw dbname=x", "host=h password=*** dbname=x"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("/runs/one/journal", "/runs/one/journal"),
    ],
)
def test_the_password_of_a_url_is_masked_whatever_it_holds(url: str, expected: str) -> None:
    assert redacted_url(url) == expected
    assert redacted(f"cannot reach {url}", url) == f"cannot reach {expected}"


def test_a_driver_s_message_loses_the_passwords_of_its_url() -> None:
    url = "postgresql://me:a%2Fb:c@d@host:5/x?sslpassword=zzz&a=b"
    assert redacted("no a/b:c@d, a%2Fb:c@d, zzz", url) == "no ***, ***, ***"
    assert redacted(f"cannot reach {url}", url) == "cannot reach postgresql://me:***@host:5/x?sslpassword=***&a=b"
    assert redacted("no p\nw", "postgresql://me:p\nw@host/x") == "no ***"
    assert redacted("no 'sec ret'", r"host=h password=sec\ ret") == "no '***'"
    assert redacted("no zzz", "postgresql://me:zzz@host/x?a=b@c") == "no ***"
    assert redacted("no host 'ssw0rd@host'", "postgresql://me:p@ssw0rd@host/x") == "no host '***@host'"
    assert redacted("no password was given", "postgresql://me@host/x") == "no password was given"


def test_a_published_configuration_holds_no_address() -> None:
    config = {"storage": "postgresql://me:pw@host/x", "warm": ["s3://bucket/run", Path("runs/a")], 3: (None, 1.5)}
    assert without_addresses(config) == {
        "storage": "postgresql://...",
        "warm": ["s3://...", "runs/a"],
        "3": [None, 1.5],
    }
