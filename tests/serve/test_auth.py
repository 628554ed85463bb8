import logging
import traceback

import pytest

from vitesse.errors import UsageError
from vitesse.serve import auth
from vitesse.serve.auth import Access, Keys, keys_from_environment, keys_from_file, redacted
from vitesse.serve.refusals import Refusal

KEY, OTHER = "k3y-of-a-client-0123456789abcdef", "an0ther-key-of-a-client-abcdef01"
ADMIN = "k3y-of-an-admin-0123456789abcdef"


@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_key_opens_and_the_scheme_is_read_in_any_case(key, scheme):
    Keys([KEY, OTHER]).check(f"{scheme} {key}")


@pytest.mark.parametrize(
    ("header", "words", "challenge"),
    [
        (None, "no Authorization header", 'Bearer realm="vitesse"'),
        ("", "no Authorization header", 'Bearer realm="vitesse"'),
        (KEY, "not a bearer key", 'error="invalid_request"'),
        ("Bearer", "not a bearer key", 'error="invalid_request"'),
        ("Bearer  ", "not a bearer key", 'error="invalid_request"'),
        (f"Basic {KEY}", "not a bearer key", 'error="invalid_request"'),
        (f"Bearer {KEY[:-1]}", "not one of this server's", 'error="invalid_token"'),
        (f"Bearer {KEY}0", "not one of this server's", 'error="invalid_token"'),
        (f"Bearer {KEY.upper()}", "not one of this server's", 'error="invalid_token"'),
        (f"Bearer {KEY},{OTHER}", "not one of this server's", 'error="invalid_token"'),
        ("Bearer \udcff\udcfe", "not one of this server's", 'error="invalid_token"'),
        ("Bearer " + "x" * 60_000, "not one of this server's", 'error="invalid_token"'),
    ],
)
def test_anything_else_is_answered_401_with_a_challenge(header, words, challenge):
    with pytest.raises(Refusal, match=words) as caught:
        Keys([KEY, OTHER]).check(header)
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    assert challenge in caught.value.headers["WWW-Authenticate"]
    assert "expected Authorization: Bearer KEY. Next step:" in caught.value.text


def test_every_key_is_compared_in_constant_time_even_after_one_was_right(monkeypatch):
    compared = []
    original = auth.hmac.compare_digest
    monkeypatch.setattr(
        auth.hmac, "compare_digest", lambda one, two: compared.append((one, two)) or original(one, two)
    )
    keys = Keys([KEY, OTHER, ADMIN])
    keys.check(f"Bearer {KEY}")
    with pytest.raises(Refusal):
        keys.check("Bearer wrong")
    assert len(compared) == 6
    assert {len(value) for pair in compared for value in pair} == {
        32
    }  # hashes: nothing of the keys' length shows


def test_client_keys_do_not_administer_and_admin_keys_do_not_infer():
    access = Access(Keys([KEY]), Keys([ADMIN]))
    access.check_client(f"Bearer {KEY}")
    access.check_admin(f"Bearer {ADMIN}")
    for check, key in ((access.check_client, ADMIN), (access.check_admin, KEY)):
        with pytest.raises(Refusal) as caught:
            check(f"Bearer {key}")
        assert caught.value.status == 401


def test_without_keys_anybody_infers_and_nobody_administers():
    Access().check_client(None)
    with pytest.raises(Refusal, match="no admin API here") as caught:
        Access().check_admin(f"Bearer {ADMIN}")
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_keys_are_read_from_a_file_line_by_line(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# clients\n\n  {KEY} \r\n{OTHER}\n")
    keys = keys_from_file(path)
    assert len(keys) == 2
    keys.check(f"Bearer {KEY}")
    keys.check(f"Bearer {OTHER}")


def test_keys_are_read_from_a_variable_and_an_unset_one_means_none():
    keys = keys_from_environment("VITESSE_KEYS", {"VITESSE_KEYS": f"{KEY}, {OTHER}"})
    assert keys is not None
    keys.check(f"Bearer {OTHER}")
    assert keys_from_environment("VITESSE_KEYS", {}) is None
    with pytest.raises(UsageError, match=r"\$VITESSE_KEYS: no key is set"):
        keys_from_environment("VITESSE_KEYS", {"VITESSE_KEYS": " , "})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no key is set"),
        (b"# only a comment\n", "no key is set"),
        (b"short\n", "key 1 has 5 characters"),
        (f"{KEY}\n{KEY} {OTHER}\n".encode(), "key 2 has blanks or letters beyond ASCII"),
        ("ключ-из-шестнадцати-букв\n".encode(), "key 1 has blanks or letters beyond ASCII"),
        (b"\xff\xfe\x00", "it is not text"),
    ],
)
def test_a_file_without_usable_keys_is_refused_by_its_name(tmp_path, content, words):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        keys_from_file(path)
    assert str(path) in str(caught.value)
    assert "next step" in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="No such file") as caught:
        keys_from_file(tmp_path / "absent")
    assert "openssl rand" in str(caught.value)
    with pytest.raises(UsageError, match="Is a directory") as caught:
        keys_from_file(tmp_path)
    assert "openssl rand" not in str(caught.value)


def test_no_repr_log_record_error_or_traceback_holds_a_key(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "very-secret-0123456789"
    said = []

    def note(error):
        said.append("".join(traceback.format_exception(error)) + repr(error) + str(vars(error)))

    keys = Keys([secret])
    said += [repr(keys), str(keys), f"{Access(keys, keys)}", repr(vars(keys))]
    logging.getLogger("vitesse").info("%s %r %s", keys, keys, redacted({"Authorization": f"Bearer {secret}"}))
    keys.check(f"Bearer {secret}")
    for header in (f"Bearer {secret}x", f"Basic {secret}", secret):
        with pytest.raises(Refusal) as refused:
            keys.check(header)
        note(refused.value)
        said.append(str(refused.value.document()) + str(refused.value.headers))
    for content in (f"{secret} {secret}", f"{secret}\nsecret-short"):
        path = tmp_path / "keys"
        path.write_text(content)
        with pytest.raises(UsageError) as unusable:
            keys_from_file(path)
        note(unusable.value)
    path.write_bytes(secret.encode() + b"\xff")
    with pytest.raises(UsageError) as unusable:
        keys_from_file(path)
    note(unusable.value)
    assert said
    assert "secret" not in "".join(said) + caplog.text


def test_headers_that_carry_secrets_are_starred_and_others_stay():
    headers = {"Authorization": f"Bearer {KEY}", "cookie": "a=b", "X-API-Key": KEY, "Accept": "*/*"}
    assert redacted(headers) == {"Authorization": "***", "cookie": "***", "X-API-Key": "***", "Accept": "*/*"}
