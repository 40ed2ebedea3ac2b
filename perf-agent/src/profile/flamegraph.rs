//! A flame graph, by inferno. Above the process stands the class, so the second row is the ledger
//! and each class is a tower of its own: warm colours on the CPU, a colour of its own for each
//! class off it.

use std::io;

use inferno::flamegraph::{
    self, Options, TextTruncateDirection,
    color::{BasicPalette, Color, Palette, PaletteMap},
};

use super::{
    coverage,
    folded::{self, NO_STACK},
    stacks::{FREED, LIVE, Stacks},
};
use crate::cli::Mode;

/// Colour of a class off the CPU; the shade differs by function.
const COLOURS: &[(&str, [u8; 3])] = &[
    ("runq", [228, 208, 88]),
    ("lock", [178, 120, 206]),
    ("disk", [100, 150, 215]),
    ("fault", [130, 180, 225]),
    ("net.tcp", [84, 188, 132]),
    ("net.udp", [110, 196, 110]),
    ("net.unix", [150, 204, 120]),
    ("net.connect", [60, 170, 150]),
    ("net.send", [90, 200, 180]),
    ("net.postgresql", [70, 180, 120]),
    ("net.mysql", [74, 184, 128]),
    ("net.redis", [78, 188, 136]),
    ("net.memcached", [82, 192, 144]),
    ("net.mongodb", [86, 196, 152]),
    ("net.http", [90, 200, 120]),
    ("net.http2", [94, 204, 128]),
    ("net.kafka", [98, 208, 136]),
    ("ipc", [90, 186, 200]),
    ("gpu", [120, 110, 200]),
    ("child", [190, 160, 120]),
    ("timer", [150, 165, 190]),
    ("stopped", [170, 150, 150]),
    ("idle", [205, 205, 205]),
    ("other", [210, 140, 170]),
    (LIVE, [214, 120, 90]),
    (FREED, [160, 190, 160]),
];
const GREY: Color = Color::new(225, 225, 225);

/// inferno chooses a colour by name, and a function is in several classes: while it draws, a name
/// ends with a character of a private plane that stands for its class. They are taken out of what
/// it has drawn.
const FIRST_MARK: u32 = 0x10_0000;

/// SVG with its own zoom and search.
///
/// # Errors
/// What inferno cannot draw.
pub fn write(stacks: &Stacks) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    let mut palette = PaletteMap::default();
    palette.insert("", GREY);
    for ((process, class, functions), ns) in folded::lines(stacks) {
        let (mark, colour) = match COLOURS.iter().position(|(name, _)| *name == class) {
            Some(at) => (char::from_u32(FIRST_MARK + at as u32), Some(COLOURS[at].1)),
            None => (None, None),
        };
        let process = unmarked(&process);
        palette.insert(&process, GREY);
        let mut line = process;
        for name in std::iter::once(format!("[{class}]")).chain(functions) {
            // inferno takes `_[k]` off only where nothing follows it.
            let plain = name.trim_end_matches("_[k]").trim_end_matches("_[i]");
            let mut name = unmarked(plain);
            if let (Some(mark), Some(colour)) = (mark, colour) {
                name.push(mark);
                let colour = match name.starts_with(NO_STACK) {
                    true => GREY,
                    false => shade(colour, plain),
                };
                palette.insert(&name, colour);
            }
            line.push(';');
            line.push_str(&name);
        }
        lines.push(format!("{line} {ns}"));
    }
    lines.sort();
    let mut svg = Vec::new();
    if lines.is_empty() {
        // inferno refuses to draw nothing; nothing was there to draw.
        lines.push("[nothing to show] 1".to_owned());
    }
    let mut options = options(stacks, &mut palette);
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
    let svg = String::from_utf8_lossy(&svg);
    Ok(unmarked(&svg).into_bytes())
}

fn options<'a>(stacks: &Stacks, palette: &'a mut PaletteMap) -> Options<'a> {
    let mut options = Options::default();
    options.title = format!("perf-agent: {}", coverage::title(stacks));
    options.subtitle = Some(coverage::short(stacks));
    // It becomes an XML comment.
    options.notes = coverage::text(stacks).replace("--", "");
    options.count_name = match stacks.shown.mode {
        Mode::Alloc => "bytes",
        Mode::Cpu | Mode::Off | Mode::Wall => "ns",
    }
    .to_owned();
    options.colors = Palette::Basic(BasicPalette::Hot);
    // By name and not by chance: the same trace gives the same bytes.
    options.deterministic = true;
    options.palette_map = Some(palette);
    options.text_truncate_direction = TextTruncateDirection::Right;
    options
}

/// Without the characters that are marks.
fn unmarked(text: &str) -> String {
    let marks = FIRST_MARK..FIRST_MARK + COLOURS.len() as u32;
    text.chars()
        .filter(|c| !marks.contains(&(*c as u32)))
        .collect()
}

/// The class's colour, a little darker or lighter by function, so that neighbours can be told apart.
fn shade(colour: [u8; 3], name: &str) -> Color {
    // FNV-1a.
    let hash = name.bytes().fold(0x811c_9dc5u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let by = (hash >> 8) % 37;
    let [r, g, b] = colour.map(|part| (u32::from(part) + by).saturating_sub(18).min(255) as u8);
    Color::new(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::Mode,
        profile::fixtures::{shown, stacks},
    };
    use perf_ebpf_common::CLASS_NAMES;

    fn svg(mode: Mode) -> String {
        String::from_utf8(write(&stacks(shown(mode, true))).unwrap()).unwrap()
    }

    #[test]
    fn the_second_row_is_the_ledger_in_nanoseconds() {
        let svg = svg(Mode::Wall);
        for want in [
            "all (10,000 ns, 100%)",
            "[lock] (3,000 ns, 30.00%)",
            "[cpu.user] (4,000 ns, 40.00%)",
            "app::update (3,000 ns, 30.00%)",
            "futex_wait (3,000 ns, 30.00%)",
            "[no stack] (500 ns, 5.00%)",
        ] {
            assert!(svg.contains(&format!("<title>{want}")), "{want}: {svg}");
        }
        assert!(!svg.contains("_[k]") && !svg.chars().any(|c| c as u32 >= FIRST_MARK));
        assert_eq!(svg, self::svg(Mode::Wall), "not the same twice");
    }

    /// Colour of the frame whose title starts so.
    fn colour(svg: &str, title: &str) -> [u8; 3] {
        let after = svg.split(&format!("<title>{title}")).nth(1).unwrap();
        let colour = after.split("fill=\"rgb(").nth(1).unwrap();
        let colour = colour.split(')').next().unwrap().split(',');
        let parts: Vec<u8> = colour.map(|n| n.parse().unwrap()).collect();
        [parts[0], parts[1], parts[2]]
    }

    #[test]
    fn the_same_function_has_the_colour_of_each_class_it_is_in() {
        let svg = svg(Mode::Wall);
        let [r, g, b] = colour(&svg, "app::hash");
        assert!(r > 200 && b < 60, "on the CPU it is hot: {r},{g},{b}");
        let [r, g, b] = colour(&svg, "app::update");
        assert!(b > r && r > g, "a lock is violet: {r},{g},{b}");
        // `main` is in five classes.
        let mains: Vec<[u8; 3]> = svg
            .match_indices("<title>main (")
            .map(|(at, _)| colour(&svg[at..], "main"))
            .collect();
        assert_eq!(mains.len(), 5, "{mains:?}");
        assert!(mains.iter().any(|[r, _, b]| *r > 200 && *b < 60));
        assert!(mains.iter().any(|[r, g, b]| b > r && r > g));
    }

    #[test]
    fn every_class_off_the_cpu_has_a_colour() {
        for name in CLASS_NAMES
            .iter()
            .filter(|n| !["cpu", "unknown"].contains(n))
        {
            assert!(COLOURS.iter().any(|(known, _)| known == name), "{name}");
        }
    }

    #[test]
    fn nothing_to_show_is_still_a_picture() {
        let empty = Stacks::new(shown(Mode::Cpu, false));
        let svg = String::from_utf8(write(&empty).unwrap()).unwrap();
        assert!(svg.contains("[nothing to show]"));
    }
}
