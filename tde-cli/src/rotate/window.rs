//! When rotations may be started.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Some hours of some days. It belongs to the day on which it begins.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(super) from: Time,
    /// At or before `from`: of the next day.
    pub(super) to: Time,
    pub(super) days: Vec<Weekday>,
    pub(super) zone: TimeZone,
    /// Whether rotations that run are paused at its end.
    pub(super) pause_running: bool,
}

impl Window {
    /// When it ends, if it is open.
    pub(crate) fn end_if_open(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        let spans = [today.yesterday().ok(), Some(today)].into_iter().flatten();
        spans.filter_map(|day| self.on(day)).find(|(from, to)| (*from..*to).contains(&now)).map(|(_, to)| to)
    }

    /// When it opens next.
    pub(crate) fn next_opening(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        let days = (0..=8).filter_map(|days| today.checked_add(Span::new().days(days)).ok());
        days.filter_map(|day| self.on(day)).map(|(from, _)| from).find(|from| *from > now)
    }

    /// From when to when it is open on a day, if it is. An hour that the clock skips counts as the one after it.
    fn on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days.is_empty() && !self.days.contains(&day.weekday()) {
            return None;
        }
        let last = if self.to <= self.from { day.tomorrow().ok()? } else { day };
        let at = |day: Date, time| Some(day.to_datetime(time).to_zoned(self.zone.clone()).ok()?.timestamp());
        Some((at(day, self.from)?, at(last, self.to)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: &str, to: &str, days: &[Weekday], zone: &str) -> Window {
        let zone = TimeZone::get(zone).unwrap();
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Window { from, to, days: days.to_vec(), zone, pause_running: false }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_begins_on() {
        let nights = window("22:00", "05:30", &[Weekday::Friday], "UTC");
        // 2026-11-20 is a Friday.
        for (time, end) in [
            ("2026-11-20T21:59:59Z", None),
            ("2026-11-20T22:00:00Z", Some("2026-11-21T05:30:00Z")),
            ("2026-11-21T05:29:59Z", Some("2026-11-21T05:30:00Z")),
            ("2026-11-21T05:30:00Z", None),
            ("2026-11-20T01:00:00Z", None),
            ("2026-11-21T23:00:00Z", None),
        ] {
            assert_eq!(nights.end_if_open(at(time)), end.map(at), "{time}");
        }
        assert_eq!(nights.next_opening(at("2026-11-20T22:00:00Z")), Some(at("2026-11-27T22:00:00Z")));
        assert_eq!(nights.next_opening(at("2026-11-20T12:00:00Z")), Some(at("2026-11-20T22:00:00Z")));
    }

    #[test]
    fn hours_are_those_of_the_zone_also_when_its_clock_changes() {
        let zurich = window("01:00", "04:00", &[], "Europe/Zurich");
        // Summer time ends on 2026-10-25 at 03:00, which is 02:00 again: the window is an hour longer.
        assert_eq!(zurich.end_if_open(at("2026-10-24T23:00:00Z")), Some(at("2026-10-25T03:00:00Z")));
        assert_eq!(zurich.end_if_open(at("2026-10-25T02:59:59Z")), Some(at("2026-10-25T03:00:00Z")));
        assert_eq!(zurich.end_if_open(at("2026-10-24T22:59:59Z")), None);
        let day = window("09:00", "17:00", &[], "UTC");
        assert_eq!(day.end_if_open(at("2026-11-20T16:00:00Z")), Some(at("2026-11-20T17:00:00Z")));
        assert_eq!(day.end_if_open(at("2026-11-20T17:00:00Z")), None);
    }
}
