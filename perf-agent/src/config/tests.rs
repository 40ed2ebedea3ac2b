//! The example holds every key, and what is wrong in a file is said in one line.

use super::*;
use crate::detect::settings::{Rules, Time, general};
use crate::detect::targets::Percentile;
use crate::fixtures::statement;

const EXAMPLE: &str = include_str!("../../../perf-agent.example.toml");

/// The example with the keys that have no default set too: lines such as `#key = …` and `#[table]`.
fn with_all_keys_set() -> String {
    let set = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    EXAMPLE.lines().map(set).collect()
}

fn wrong(text: &str) -> String {
    parse("x.toml", text).unwrap_err().to_string()
}

#[test]
fn the_example_is_the_defaults() {
    assert_eq!(parse("example", EXAMPLE).unwrap(), Config::default());
}

#[test]
fn the_example_has_every_key() {
    let text = with_all_keys_set();
    let table: toml::Table = text.parse().unwrap();
    let mut missing = Vec::new();
    for (rule, thresholds) in Rules::DEFAULT.list() {
        for threshold in thresholds {
            if table["rules"]
                .get(rule)
                .is_none_or(|t| t.get(threshold.key).is_none())
            {
                missing.push(format!(
                    "[rules.{rule}] {} = {}",
                    threshold.key, threshold.default
                ));
            }
        }
    }
    for threshold in general::Thresholds::DEFAULT.list() {
        if table["findings"].get(threshold.key).is_none() {
            missing.push(format!(
                "[findings] {} = {}",
                threshold.key, threshold.default
            ));
        }
    }
    assert!(
        missing.is_empty(),
        "add to perf-agent.example.toml: {missing:#?}"
    );
    let keys = |value: &toml::Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_table().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(
        keys(&table["findings"]),
        ["min_gain", "off", "resolved_after"]
    );
    assert_eq!(keys(&table["targets"]), ["p50", "p90", "p95", "p99"]);
    assert_eq!(keys(&table["budget"]), ["cpu", "rss"]);
    assert_eq!(keys(&table["delegates"]), {
        let mut names = crate::detect::DELEGATES.to_vec();
        names.sort_unstable();
        names
    });
    assert!(table["target"].as_array().is_some_and(|t| t.len() == 2));
    // And every key in it is one.
    parse("example", &text).unwrap();
}

#[test]
fn what_is_set_is_taken() {
    let text = "\
delegates.database-specialist = 'dba-team'
findings.off = ['sleep_poll']
rules.cpu_bound.busy = 0.75
rules.run_queue.pressure_p99 = '2.5ms'
targets.p95 = '200ms'
budget.cpu = 1
budget.rss = '512MiB'
[[target]]
statement = 'SELECT a FROM t WHERE b = 3'
p95 = '50ms'
p99 = '1s'
";
    let config = parse("x", text).unwrap();
    assert_eq!(
        config.delegates,
        [("database-specialist".to_owned(), "dba-team".to_owned())]
    );
    let settings = config.settings;
    assert_eq!(settings.off[0].0, "sleep_poll");
    assert_eq!(settings.rules.cpu_bound.busy.0, 0.75);
    assert_eq!(settings.rules.cpu_bound.hot, Rules::DEFAULT.cpu_bound.hot);
    assert_eq!(settings.rules.run_queue.pressure_p99, Time(2_500_000));
    assert_eq!(settings.budget.cpu.unwrap().0, 1.0);
    assert_eq!(settings.budget.rss.unwrap().0, 512 << 20);
    let row = statement("SELECT a FROM t WHERE b = ?", 1, 1);
    let limits: Vec<_> = settings.targets.of(&row).each().collect();
    assert_eq!(
        limits,
        [
            (Percentile::P95, 50_000_000),
            (Percentile::P99, 1_000_000_000)
        ]
    );
}

#[test]
fn an_unknown_name_is_told_with_its_line_and_the_nearest_right_one() {
    for (text, expected) in [
        (
            "\n[rules.cpu_bound]\nbusi = 0.5\n",
            "x.toml:3: there is no key `busi` here: did you mean `busy`?",
        ),
        (
            "[rules.cpu_bond]\n",
            "x.toml:1: there is no key `cpu_bond` here: did you mean `cpu_bound`?",
        ),
        (
            "[delegates]\n\ndatabase_specialist = 'x'\n",
            "x.toml:3: no delegate is called `database_specialist`: did you mean `database-specialist`?",
        ),
        (
            "[findings]\n\noff = ['sleep_pol']\n",
            "x.toml:3: no rule is called `sleep_pol`: did you mean `sleep_poll`?",
        ),
        (
            "[targets]\nqqq = '1s'\n",
            "x.toml:2: there is no key `qqq` here: there are p50, p90, p95, p99",
        ),
        (
            "[[target]]\nroute = 'GET /'\nrout = 'GET /x'\n",
            "x.toml:3: there is no key `rout` here: did you mean `route`?",
        ),
    ] {
        assert_eq!(wrong(text), expected, "{text}");
    }
}

#[test]
fn a_wrong_value_is_told_with_its_line() {
    for (text, expected) in [
        (
            "[rules.cpu_bound]\nbusy = 50.5\n",
            "x.toml:2: 50.5 is no share: use a number from 0 to 1",
        ),
        (
            "[rules.cpu_bound]\nbusy = 'much'\n",
            "x.toml:2: invalid type: string \"much\", expected f64",
        ),
        (
            "[targets]\np95 = 200\n",
            "x.toml:2: invalid type: integer `200`, expected a string",
        ),
        (
            "[targets]\np95 = '200 years'\n",
            "x.toml:2: no unit of time: ` years` (use ms, s, m or h)",
        ),
        (
            "[[target]]\np95 = '1s'\n",
            "x.toml:1: a target is for a `statement` or for a `route`: set one of the two",
        ),
        (
            "\n[[target]]\nroute = 'GET /'\n",
            "x.toml:2: this target has no limit: set p50, p90, p95 or p99",
        ),
    ] {
        assert_eq!(wrong(text), expected, "{text}");
    }
    assert!(
        wrong("[rules\n").starts_with("x.toml:1: "),
        "{}",
        wrong("[rules\n")
    );
    assert_eq!(wrong("a = 1\na = 2").lines().count(), 1);
}

#[test]
fn a_file_of_ones_own_comes_before_that_of_the_host() {
    let places = |pairs: &[(&str, &str)]| -> Vec<PathBuf> {
        usual_places(|name| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| PathBuf::from(value))
        })
    };
    let system = PathBuf::from(SYSTEM_FILE);
    assert_eq!(
        places(&[("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")]),
        [
            PathBuf::from("/c/perf-agent/perf-agent.toml"),
            system.clone()
        ]
    );
    assert_eq!(
        places(&[("XDG_CONFIG_HOME", "c"), ("HOME", "/h")]),
        [
            PathBuf::from("/h/.config/perf-agent/perf-agent.toml"),
            system.clone()
        ]
    );
    assert_eq!(places(&[]), [system]);
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let error = load(Some(Path::new("/no/such.toml"))).unwrap_err();
    assert_eq!(error.to_string(), "/no/such.toml: there is no such file");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[\\[\\]a-z_.='\"0-9\n ]{0,80}") {
        let _ = parse("x", &text);
    }
}
