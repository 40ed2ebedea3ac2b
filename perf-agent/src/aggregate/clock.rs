//! Wall-clock stamps of monotonic times.

use crate::{drain::Start, model::Stamp};

/// The stamp of an instant of CLOCK_MONOTONIC, by the two clocks read together at the attach.
pub fn stamp(start: &Start, monotonic_ns: u64) -> Stamp {
    let ns = start.realtime_ns + monotonic_ns.saturating_sub(start.monotonic_ns);
    Stamp {
        ts: rfc3339(ns),
        host: start.host.clone(),
    }
}

/// RFC 3339 in UTC with nanoseconds.
fn rfc3339(unix_ns: u64) -> String {
    let seconds = unix_ns / 1_000_000_000;
    let (year, month, day) = civil(seconds / 86400);
    let s = seconds % 86400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        s / 3600,
        s / 60 % 60,
        s % 60,
        unix_ns % 1_000_000_000
    )
}

/// Year, month and day of a day since 1970-01-01, in the proleptic Gregorian calendar: whole
/// 400-year eras of 146,097 days, years begun in March so that the leap day is last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_agree_with_known_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            rfc3339(951_782_400_000_000_001),
            "2000-02-29T00:00:00.000000001Z"
        );
        assert_eq!(
            rfc3339(1_735_689_599_500_000_000),
            "2024-12-31T23:59:59.500000000Z"
        );
        assert_eq!(
            rfc3339(4_107_542_400_000_000_000),
            "2100-03-01T00:00:00.000000000Z"
        );
    }
}
