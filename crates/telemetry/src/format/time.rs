//! Time formats of `%START_TIME(..)%`: `strftime` with Envoy's fractions of a second.

use std::cell::Cell;
use std::io::Write;
use std::time::SystemTime;
use time::OffsetDateTime;

thread_local! {
    /// A second since 1970, and how the default format writes it up to the point: log lines of one
    /// second differ in their milliseconds only.
    static SECOND: Cell<Option<(u64, [u8; 20])>> = const { Cell::new(None) };
}

/// A compiled time format, in UTC.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum TimeFormat {
    /// `2026-01-31T23:59:59.123Z`, Envoy's default.
    #[default]
    Usual,
    Pieces(Vec<Piece>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Literal(Box<str>),
    Year,
    YearOfCentury,
    Month,
    MonthName {
        short: bool,
    },
    Day,
    DaySpacePadded,
    DayOfYear,
    Weekday {
        short: bool,
    },
    Hour,
    Hour12,
    AmPm,
    Minute,
    Second,
    /// Seconds since 1970.
    UnixSeconds,
    /// This many digits of the second's fraction.
    Fraction(usize),
    /// The second with this many digits of its fraction.
    SecondWithFraction(usize),
}

impl TimeFormat {
    /// Compiles a format; an empty one is the default.
    pub(super) fn parse(format: &str) -> Result<Self, String> {
        if format.is_empty() {
            return Ok(Self::Usual);
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                literal.push(c);
                continue;
            }
            let specifier = specifier(&mut chars, format)?;
            match specifier {
                Specifier::Text(text) => literal.push_str(text),
                Specifier::Pieces(found) => {
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                    }
                    pieces.extend(found);
                }
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Self::Pieces(pieces))
    }

    /// Appends the time.
    pub(super) fn render(&self, time: SystemTime, out: &mut Vec<u8>) {
        match self {
            Self::Usual => usual(time, out),
            Self::Pieces(pieces) => {
                let at = OffsetDateTime::from(time);
                pieces.iter().for_each(|piece| render(piece, at, out));
            }
        }
    }
}

fn usual(time: SystemTime, out: &mut Vec<u8>) {
    // A clock before 1970 is wrong whatever is written.
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    let text = match SECOND.get() {
        Some((second, text)) if second == since.as_secs() => text,
        _ => {
            let text = up_to_second(time);
            SECOND.set(Some((since.as_secs(), text)));
            text
        }
    };
    out.extend_from_slice(&text);
    let millis = since.subsec_millis();
    let digit = |n: u32| b'0' + (n % 10) as u8;
    out.extend_from_slice(&[digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
}

/// `2026-01-31T23:59:59.`
fn up_to_second(time: SystemTime) -> [u8; 20] {
    use Piece::{Day, Hour, Minute, Month, Second, Year};
    let at = OffsetDateTime::from(time);
    let mut text = Vec::with_capacity(20);
    for (piece, then) in [
        (Year, b'-'),
        (Month, b'-'),
        (Day, b'T'),
        (Hour, b':'),
        (Minute, b':'),
        (Second, b'.'),
    ] {
        render(&piece, at, &mut text);
        text.push(then);
    }
    // A year of five digits would be longer.
    text.first_chunk().copied().unwrap_or([b'0'; 20])
}

enum Specifier {
    Text(&'static str),
    Pieces(Vec<Piece>),
}

fn specifier(chars: &mut std::str::Chars<'_>, format: &str) -> Result<Specifier, String> {
    use Piece::*;
    let unknown = |c: char| format!("'%{c}' in the time format '{format}' is not supported");
    let literal = |text: &str| Literal(text.into());
    let c = chars
        .next()
        .ok_or_else(|| format!("the time format '{format}' ends in '%'"))?;
    let pieces = match c {
        '%' => return Ok(Specifier::Text("%")),
        'n' => return Ok(Specifier::Text("\n")),
        't' => return Ok(Specifier::Text("\t")),
        'Z' => return Ok(Specifier::Text("UTC")),
        'z' => return Ok(Specifier::Text("+0000")),
        'Y' => vec![Year],
        'y' => vec![YearOfCentury],
        'm' => vec![Month],
        'b' | 'h' => vec![MonthName { short: true }],
        'B' => vec![MonthName { short: false }],
        'd' => vec![Day],
        'e' => vec![DaySpacePadded],
        'j' => vec![DayOfYear],
        'a' => vec![Weekday { short: true }],
        'A' => vec![Weekday { short: false }],
        'H' => vec![Hour],
        'I' => vec![Hour12],
        'p' => vec![AmPm],
        'M' => vec![Minute],
        'S' => vec![Second],
        's' => vec![UnixSeconds],
        'f' => vec![Fraction(9)],
        'F' => vec![Year, literal("-"), Month, literal("-"), Day],
        'D' => vec![Month, literal("/"), Day, literal("/"), YearOfCentury],
        'T' => vec![Hour, literal(":"), Minute, literal(":"), Second],
        'R' => vec![Hour, literal(":"), Minute],
        digit @ '1'..='9' => match chars.next() {
            Some('f') => vec![Fraction(digit as usize - '0' as usize)],
            _ => return Err(unknown(digit)),
        },
        // Abseil: %E3S is the second with three digits.
        'E' => match (chars.next(), chars.next()) {
            (Some(digit @ '0'..='9'), Some('S')) => {
                vec![SecondWithFraction(digit as usize - '0' as usize)]
            }
            _ => return Err(unknown('E')),
        },
        other => return Err(unknown(other)),
    };
    Ok(Specifier::Pieces(pieces))
}

fn render(piece: &Piece, at: OffsetDateTime, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = match piece {
        Piece::Literal(text) => out.write_all(text.as_bytes()),
        Piece::Year if (0..=9999).contains(&at.year()) => {
            let year = at.year().unsigned_abs();
            two(year / 100, out).and_then(|()| two(year % 100, out))
        }
        Piece::Year => write!(out, "{:04}", at.year()),
        Piece::YearOfCentury => two(at.year().rem_euclid(100).unsigned_abs(), out),
        Piece::Month => two(u8::from(at.month()).into(), out),
        Piece::MonthName { short } => {
            name(&MONTHS, usize::from(u8::from(at.month())) - 1, *short, out)
        }
        Piece::Day => two(at.day().into(), out),
        Piece::DaySpacePadded => write!(out, "{:2}", at.day()),
        Piece::DayOfYear => write!(out, "{:03}", at.ordinal()),
        Piece::Weekday { short } => name(
            &WEEKDAYS,
            usize::from(at.weekday().number_days_from_monday()),
            *short,
            out,
        ),
        Piece::Hour => two(at.hour().into(), out),
        Piece::Hour12 => two(((at.hour() + 11) % 12 + 1).into(), out),
        Piece::AmPm => out.write_all(if at.hour() < 12 { b"AM" } else { b"PM" }),
        Piece::Minute => two(at.minute().into(), out),
        Piece::Second => two(at.second().into(), out),
        Piece::UnixSeconds => write!(out, "{}", at.unix_timestamp()),
        Piece::Fraction(digits) => fraction(at.nanosecond(), *digits, out),
        Piece::SecondWithFraction(0) => two(at.second().into(), out),
        Piece::SecondWithFraction(digits) => two(at.second().into(), out).and_then(|()| {
            out.push(b'.');
            fraction(at.nanosecond(), *digits, out)
        }),
    };
}

fn two(number: u32, out: &mut Vec<u8>) -> std::io::Result<()> {
    let digit = |n: u32| b'0' + u8::try_from(n % 10).unwrap_or(0);
    out.extend_from_slice(&[digit(number / 10), digit(number)]);
    Ok(())
}

/// The first `digits` of nine.
fn fraction(nanoseconds: u32, digits: usize, out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut unit = 100_000_000;
    for _ in 0..digits.min(9) {
        out.push(b'0' + u8::try_from(nanoseconds / unit % 10).unwrap_or(0));
        unit = (unit / 10).max(1);
    }
    Ok(())
}

fn name(names: &[&str], index: usize, short: bool, out: &mut Vec<u8>) -> std::io::Result<()> {
    let name = names.get(index).copied().unwrap_or_default();
    out.write_all(if short {
        &name.as_bytes()[..name.len().min(3)]
    } else {
        name.as_bytes()
    })
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
