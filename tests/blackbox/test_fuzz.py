"""The cursor of audit.get_logs, given by whoever reads: any text is either a cursor or refused as none. The parsers in Rust
are fuzzed by scripts/fuzz."""

import pytest


def fuzz(conn, count):
    conn.execute("SELECT setseed(0.5)")
    conn.execute(
        r"""
        CREATE FUNCTION pg_temp.fuzz(count int) RETURNS TABLE (outcome text, cases bigint) LANGUAGE plpgsql AS $$
        DECLARE
            valid text := audit.log_cursor('2026-01-02 03:04:05.678901Z', '019b7ca9-8f2e-7e6b-8123-456789abcdef', 7);
            input text;
            place audit.log_place;
            taken bigint := 0;
            refused bigint := 0;
            alphabet text := '0123456789abcdefABCDEFgxv1.+- ''\%"' || E'\n\t\u00e9\u0661\u2007';
        BEGIN
            FOR i IN 1..count LOOP
                input := valid;
                -- Replace, insert and remove here and there, or cut.
                FOR n IN 1..1 + (random() * 3)::int LOOP
                    input := overlay(input placing substr(alphabet, 1 + (random() * length(alphabet))::int, (random() * 1.4)::int)
                                     from 1 + (random() * length(input))::int for (random() * 1.2)::int);
                END LOOP;
                IF random() < 0.1 THEN
                    input := left(input, (random() * 70)::int);
                END IF;
                BEGIN
                    place := audit.log_place(input);
                    IF audit.log_cursor(place.occurred_at, place.changeset_id, place.seq) IS DISTINCT FROM input THEN
                        RAISE 'cursor % reads as %', input, place USING ERRCODE = 'assert_failure';
                    END IF;
                    PERFORM FROM audit.get_logs(page_size => 1, after => input);
                    taken := taken + 1;
                EXCEPTION WHEN invalid_parameter_value THEN
                    refused := refused + 1;
                END;
            END LOOP;
            RETURN QUERY VALUES ('taken', taken), ('refused', refused);
        END $$"""
    )
    return conn.execute("SELECT * FROM pg_temp.fuzz(%s)", [count]).fetchall()


def run(conn, count):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); INSERT INTO t VALUES (1)")
    outcomes = dict(fuzz(conn, count))
    assert outcomes["taken"] > count / 50 and outcomes["refused"] > count / 50, outcomes
    assert sum(outcomes.values()) == count


def test_cursors(conn):
    run(conn, 2_000)


@pytest.mark.long
def test_many_cursors(conn):
    run(conn, 100_000)
