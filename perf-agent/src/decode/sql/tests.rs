use proptest::prelude::*;

use super::*;

fn pg(text: &str) -> String {
    shape(text.as_bytes(), Syntax::POSTGRESQL, false)
}

fn my(text: &str) -> String {
    shape(text.as_bytes(), Syntax::MYSQL, false)
}

#[test]
fn literals_of_every_form_are_question_marks() {
    for literal in [
        "1",
        "-1",
        "+1",
        "1.5e-3",
        ".5",
        "0x1F",
        "1_000",
        "'a'",
        "'it''s'",
        "''",
        "E'a\\'b'",
        "$$a'b$$",
        "$q$a$$b$q$",
        "x'1F'",
        "B'01'",
        "U&'d\\0061t'",
        "N'x'",
        "$1",
        "$12",
        "NULL",
        "true",
        "'a' \n 'b'",
        "12abc",
    ] {
        let text = format!("select * from t where a={literal} and b>0");
        assert_eq!(
            pg(&text),
            "select * from t where a = ? and b > ?",
            "{literal}"
        );
    }
    for literal in [
        "?",
        "'a'",
        "\"a\"",
        "'it\\'s'",
        "\"a\"\"b\"",
        "x'1F'",
        "0x1F",
        "b'1'",
        "-1",
        "n'x'",
        "NULL",
    ] {
        let text = format!("SELECT * FROM `t` WHERE a={literal} AND b>0");
        assert_eq!(
            my(&text),
            "SELECT * FROM `t` WHERE a = ? AND b > ?",
            "{literal}"
        );
    }
    assert_eq!(pg("SELECT DATE '2020-01-01' - 7"), "SELECT DATE ? - ?");
    assert_eq!(
        my("SET @a = _utf8'x', @@session.b = 1"),
        "SET @a = _utf8 ?, @@session.b = ?"
    );
}

#[test]
fn spacing_comments_and_hints_do_not_make_another_statement() {
    let expected = "SELECT a.b, count(*) FROM t1 WHERE x = ? AND y::int = ?";
    for text in [
        "SELECT a.b, count(*) FROM t1 WHERE x=1 AND y::int=2",
        "  SELECT a . b,count( * )\n\tFROM t1 -- one\n WHERE x=1 AND y :: int=2 ; ",
        "/* c /* nested */ */ SELECT /*+ SeqScan(t) */ a.b, count(*) FROM t1 WHERE x=1 AND y::int=2;;",
    ] {
        assert_eq!(pg(text), expected);
    }
    assert_eq!(my("SELECT 1 # c\n + a-- c\n"), "SELECT ? + a");
    assert_eq!(my("SELECT 5--3"), "SELECT ? - ?");
    assert_eq!(my("/*!40101 SET NAMES utf8 */;"), "SET NAMES utf8");
    assert_eq!(pg("SELECT 5--3\n"), "SELECT ?");
    assert_eq!(
        pg("SELECT a#>>'{b}', c->'d', e ? 'f'"),
        "SELECT a #>> ?, c -> ?, e ? ?"
    );
}

#[test]
fn signs_belong_to_numbers_and_operators_to_what_is_between_two() {
    assert_eq!(
        pg("SELECT a-1, -1, (-1), b - -1, -c"),
        "SELECT a - ?, ?, (?), b - ?, - c"
    );
    assert_eq!(
        pg("UPDATE t SET a = a + -5 WHERE b BETWEEN -1 AND -2"),
        "UPDATE t SET a = a + ? WHERE b BETWEEN ? AND ?"
    );
}

#[test]
fn lists_and_rows_of_any_length_have_one_shape() {
    let expected = "SELECT * FROM t WHERE a IN (?) AND b = ANY (ARRAY[?])";
    for list in ["1", "1,2", "$1, $2,$3, $4", "'a', NULL, -3"] {
        let text = format!("SELECT * FROM t WHERE a IN ({list}) AND b = ANY (ARRAY[{list}])");
        assert_eq!(pg(&text), expected);
    }
    assert_eq!(pg("a IN (1, b, 2, 3)"), "a IN (?, b, ?)");
    assert_eq!(pg("(a, b) IN ((1, 'x'), (2, 'y'))"), "(a, b) IN ((?, ?))");
    assert_eq!(pg("a IN ($1::int, $2::int)"), "a IN (?::int)");
    assert_eq!(
        pg("a IN (SELECT b, 1, 2 FROM c)"),
        "a IN (SELECT b, ?, ? FROM c)"
    );
    assert_eq!(pg("f(1, 2)"), "f(?, ?)");
    let expected =
        "INSERT INTO t (a, b) VALUES (?, ?) ON DUPLICATE KEY UPDATE a = VALUES (a), b = VALUES (b)";
    for rows in [
        "(1,2)",
        "(1,'x'),(NULL, now())",
        "(?, ?), (DEFAULT, (1)),(1,2)",
    ] {
        let text = format!(
            "INSERT INTO t (a, b) VALUES{rows} ON DUPLICATE KEY UPDATE a=VALUES(a),b=VALUES(b)"
        );
        assert_eq!(my(&text), expected);
    }
}

#[test]
fn names_made_up_by_drivers_are_no_part_of_a_shape() {
    assert_eq!(pg("SAVEPOINT s_17"), "SAVEPOINT ?");
    assert_eq!(pg("ROLLBACK TO SAVEPOINT s_17"), "ROLLBACK TO SAVEPOINT ?");
    assert_eq!(pg("RELEASE s_17"), "RELEASE ?");
    assert_eq!(pg("ROLLBACK"), "ROLLBACK");
    assert_eq!(pg("DEALLOCATE pdo_stmt_0000001c"), "DEALLOCATE ?");
    assert_eq!(pg("DEALLOCATE ALL"), "DEALLOCATE ALL");
}

#[test]
fn quoted_identifiers_stay_and_can_do_no_harm_to_a_terminal() {
    assert_eq!(pg("SELECT \"A b\".\"c\"\"d\""), "SELECT \"A b\".\"c\"\"d\"");
    assert_eq!(pg("SELECT \"a\x1b[2J\""), "SELECT \"a [2J\"");
    assert_eq!(my("SELECT `a`.`b`"), "SELECT `a`.`b`");
    assert_eq!(
        shape(b"SELECT caf\xe9 FROM t", Syntax::POSTGRESQL, false),
        "SELECT caf\u{fffd} FROM t"
    );
}

#[test]
fn a_text_that_was_cut_shows_no_literal_and_says_so() {
    let cut = |text: &str| shape(text.as_bytes(), Syntax::POSTGRESQL, true);
    assert_eq!(
        cut("SELECT * FROM t WHERE a = 'secr"),
        "SELECT * FROM t WHERE a = ?…"
    );
    assert_eq!(cut("SELECT $$secr"), "SELECT ?…");
    assert_eq!(cut("SELECT a /* secr"), "SELECT a…");
    assert_eq!(
        cut("INSERT INTO t VALUES (1, 2), (3, 'se"),
        "INSERT INTO t VALUES (?, ?)…"
    );
    assert_eq!(
        cut("SELECT 1 WHERE a IN (1, 2, "),
        "SELECT ? WHERE a IN (?,…"
    );
}

#[test]
fn a_shape_is_bounded() {
    let long = format!("SELECT {}", "a, b + 1, ".repeat(1000));
    let short = pg(&long);
    assert!(
        short.len() <= MAX_SHAPE + '…'.len_utf8() && short.ends_with('…'),
        "{short}"
    );
    assert!(pg(&format!("SELECT \"{}\"", "é".repeat(5000))).len() <= MAX_SHAPE + 3);
}

#[test]
fn statements_are_split_where_the_server_splits_them() {
    let split = |text: &'static str, syntax| -> Vec<String> {
        let parts = Statements::new(text.as_bytes(), syntax);
        parts.map(|s| shape(s, syntax, false)).collect()
    };
    let pg = |text| split(text, Syntax::POSTGRESQL);
    assert_eq!(
        pg(" ; BEGIN; SELECT ';' ;; -- ;\nCOMMIT ; "),
        ["BEGIN", "SELECT ?", "COMMIT"]
    );
    assert_eq!(pg("/* nothing */ ;").len(), 0);
    assert_eq!(pg("SELECT $a$;$a$; SELECT 2").len(), 2);
    assert_eq!(
        pg("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3").len(),
        2
    );
    assert_eq!(
        pg("CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; SELECT 2; END; SELECT 3").len(),
        2
    );
    let my = |text| split(text, Syntax::MYSQL);
    assert_eq!(
        my("SELECT 1; /*!50003 SET @a=1 */; SELECT \";\""),
        ["SELECT ?", "SET @a = ?", "SELECT ?"]
    );
    assert_eq!(
        my("CREATE DEFINER=`r`@`%` PROCEDURE p() BEGIN IF a THEN SELECT 1; END IF; CASE a WHEN 1 THEN SELECT 2; END CASE; END; SELECT 2").len(),
        2
    );
}

#[test]
fn a_fingerprint_is_the_same_forever() {
    assert_eq!(fingerprint("SELECT ?"), FINGERPRINT_OF_SELECT);
}

/// FNV-1a of "SELECT ?" and a zero byte, computed apart.
const FINGERPRINT_OF_SELECT: u64 = 0x72d8_16e7_c785_ad88;

#[test]
fn texts_that_differ_in_literals_share_an_id() {
    let mut output = Output::new(super::super::Options::default());
    let a = text_id(b"SELECT 1", Syntax::POSTGRESQL, false, &mut output);
    let b = text_id(b"SELECT 2", Syntax::POSTGRESQL, false, &mut output);
    assert_eq!((a, output.text_of(a)), (b, "SELECT ?"));
    assert_eq!(
        text_id(b"SELECT 1", Syntax::POSTGRESQL, false, &mut output),
        a
    );
    assert_ne!(
        text_id(b"SELECT 1", Syntax::POSTGRESQL, true, &mut output),
        a
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn any_bytes_have_a_bounded_shape_and_no_digit_or_quoted_text_of_theirs(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "select", " ", "'7", "'", "\"", "`", "$", "$a$", "7", "(", ")", ",", "in ", "values", "/*",
            "*/", "--", "\n", "#", ";", "\\", "::", ".", "array", "[", "]", "-", "é", "\u{0}", "e'",
            "begin", "end", "create function", "@", "null",
        ]), 0..24),
        cut in any::<bool>(),
    ) {
        let text = parts.concat();
        for syntax in [Syntax::POSTGRESQL, Syntax::MYSQL] {
            let out = shape(text.as_bytes(), syntax, cut);
            prop_assert!(out.len() <= MAX_SHAPE + 3);
            let quoted = if syntax == Syntax::POSTGRESQL { '"' } else { '`' };
            if !out.contains([quoted, '$']) {
                let digits = out.match_indices('7').filter(|(i, _)| {
                    // A digit within a word or a MySQL variable is a name's.
                    !out[..*i].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '@'))
                });
                prop_assert_eq!(digits.count(), 0, "{} of {}", out, text);
            }
            let statements: usize = Statements::new(text.as_bytes(), syntax).map(<[u8]>::len).sum();
            prop_assert!(statements <= text.len());
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        for syntax in [Syntax::POSTGRESQL, Syntax::MYSQL] {
            prop_assert!(shape(&bytes, syntax, false).len() <= MAX_SHAPE + 3);
        }
    }
}
