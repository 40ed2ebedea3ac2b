//! Numbers as people read them: three significant digits and a unit.

/// Three significant digits, trailing zeros kept (`1.00`, `12.3`, `999`).
fn three_digits(value: f64) -> String {
    if value >= 99.95 {
        format!("{value:.0}")
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Divides by the largest unit that leaves at least one; rounding up to the next one included.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    for (size, unit) in units {
        if value >= size * 0.9995 {
            return format!("{}{unit}", three_digits(value / size));
        }
    }
    match units.last() {
        Some((size, unit)) => format!("{}{unit}", three_digits(value / size)),
        None => three_digits(value),
    }
}

/// `870 ns`, `12.3 µs`, `1.50 ms`, `10.0 s`, `12.5 min`, `3.20 h`.
pub fn duration(ns: u64) -> String {
    if ns < 1_000 {
        return format!("{ns} ns");
    }
    const UNITS: &[(f64, &str)] = &[(3.6e12, " h"), (1e9, " s"), (1e6, " ms"), (1e3, " µs")];
    // Minutes start at ten: "90.0 s" reads better than "1.50 min".
    if (600_000_000_000..3_600_000_000_000).contains(&ns) {
        return format!("{} min", three_digits(ns as f64 / 6e10));
    }
    scaled(ns as f64, UNITS)
}

/// A rate of thread time: `420 ms/s`.
pub fn duration_per_s(ns: u64) -> String {
    format!("{}/s", duration(ns))
}

/// `512 B`, `4.00 KiB`, `1.50 GiB`.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    const UNITS: &[(f64, &str)] = &[
        (1_099_511_627_776.0, " TiB"),
        (1_073_741_824.0, " GiB"),
        (1_048_576.0, " MiB"),
        (1024.0, " KiB"),
    ];
    scaled(bytes as f64, UNITS)
}

/// A whole number with thin grouping up to 99,999, then `123 k`, `4.56 M`.
pub fn count(count: u64) -> String {
    if count < 100_000 {
        return grouped(count);
    }
    scaled(
        count as f64,
        &[(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")],
    )
}

/// A rate, as [`count`] but with decimals below a hundred.
pub fn rate(per_s: f64) -> String {
    if !per_s.is_finite() || per_s <= 0.0 {
        "0".to_owned()
    } else if per_s < 99.95 {
        three_digits(per_s)
    } else {
        count(per_s.round() as u64)
    }
}

/// Digits in groups of three: `12,345`.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A share in per cent: `61 %`, `6.1 %`, `0.61 %`, `<0.01 %`; nothing of nothing is `0 %`.
pub fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0 %".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    if percent < 0.005 {
        "<0.01 %".to_owned()
    } else if percent < 0.995 {
        format!("{percent:.2} %")
    } else if percent < 9.95 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// A bar of `width` cells, in eighths; anything above nothing shows.
pub fn bar(part: u64, whole: u64, width: usize) -> String {
    if part == 0 || whole == 0 {
        return String::new();
    }
    const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share = (part as f64 / whole as f64).min(1.0);
    let eighths = ((share * width as f64 * 8.0).round() as usize).max(1);
    let mut out: String = std::iter::repeat_n('█', eighths / 8).collect();
    if !eighths.is_multiple_of(8) {
        out.push(EIGHTHS[eighths % 8 - 1]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_the_unit_that_fits() {
        for (ns, want) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (12_345, "12.3 µs"),
            (999_499, "999 µs"),
            (999_600, "1.00 ms"),
            (1_500_000, "1.50 ms"),
            (420_000_000, "420 ms"),
            (10_000_000_000, "10.0 s"),
            (90_000_000_000, "90.0 s"),
            (599_000_000_000, "599 s"),
            (599_999_000_000, "600 s"),
            (600_000_000_000, "10.0 min"),
            (750_000_000_000, "12.5 min"),
            (11_520_000_000_000, "3.20 h"),
        ] {
            assert_eq!(duration(ns), want, "{ns}");
        }
        assert_eq!(duration_per_s(420_000_000), "420 ms/s");
    }

    #[test]
    fn bytes_and_counts_keep_their_size_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(4096), "4.00 KiB");
        assert_eq!(bytes(1_610_612_736), "1.50 GiB");
        assert_eq!(count(7), "7");
        assert_eq!(count(12_345), "12,345");
        assert_eq!(count(123_456), "123 k");
        assert_eq!(count(4_560_000), "4.56 M");
        assert_eq!(rate(0.5), "0.50");
        assert_eq!(rate(41_000.4), "41,000");
        assert_eq!(rate(f64::NAN), "0");
    }

    #[test]
    fn a_share_never_rounds_something_to_nothing() {
        assert_eq!(percent(0, 10), "0 %");
        assert_eq!(percent(1, 0), "0 %");
        assert_eq!(percent(1, 1_000_000), "<0.01 %");
        assert_eq!(percent(61, 10_000), "0.61 %");
        assert_eq!(percent(61, 1_000), "6.1 %");
        assert_eq!(percent(61, 100), "61 %");
        assert_eq!(percent(1, 1), "100 %");
        assert_eq!(bar(0, 10, 8), "");
        assert_eq!(bar(1, 1_000_000, 8), "▏");
        assert_eq!(bar(1, 2, 8), "████");
        assert_eq!(bar(10, 10, 8), "████████");
    }
}
