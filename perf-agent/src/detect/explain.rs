//! What the rules say of themselves, for `perf-agent explain`.

/// The words of a rule about itself, beside it in its file.
#[derive(Clone, Copy, Debug)]
pub struct Explain {
    /// What it looks at, as the rest of a sentence that begins "Looks at".
    pub looks_at: &'static str,
    /// What each figure of evidence means, by its name.
    pub numbers: &'static [(&'static str, &'static str)],
    /// What the bound on the gain is the sum of.
    pub bound: &'static str,
    /// How sure it is, and why no surer.
    pub confidence: &'static str,
    /// What to do with a finding next, beside its recommendations.
    pub next: &'static str,
}

impl Explain {
    /// What a figure of evidence means.
    pub fn number(&self, name: &str) -> Option<&'static str> {
        let all = self.numbers.iter().chain(super::causes::NUMBERS);
        let found = { all }.find(|(known, _)| *known == name);
        found.map(|(_, meaning)| *meaning)
    }
}
