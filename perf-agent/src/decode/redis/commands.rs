//! Redis's commands: where the key stands, what the answer tells of a lookup, and what a command
//! does to the connection.
//!
//! Names and key positions are those of `COMMAND` of Redis 7.0, and the commands newer versions
//! added.

use std::sync::LazyLock;

use super::super::keys;

/// Where a command's first key is among its arguments (the command's name is argument 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    None,
    At(u8),
    /// Behind the argument of this index, if that count is not 0.
    AfterCount(u8),
    /// Behind the argument `STREAMS`.
    AfterStreams,
}

/// What an answer tells of the lookups the server counts as keyspace hits and misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    None,
    /// Null is a miss.
    Value,
    /// An element for each key, null is a miss: `MGET`.
    Each,
    /// One key; found if any field of it was: `HMGET`.
    Any,
    /// The number of keys found: `EXISTS`.
    Found,
    /// 0 is a miss.
    Positive,
    /// No elements is a miss.
    Rows,
    /// -2 is a miss.
    Ttl,
    /// `none` is a miss.
    Type,
}

/// What a command does beside being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Has subcommands, which are part of its name.
    Container,
    /// `CLIENT`: a container, of which `REPLY` changes what is answered.
    Client,
    /// Answered once per channel.
    Subscribe,
    /// As subscribe, but without channels once per channel that was subscribed.
    Unsubscribe,
    Multi,
    Exec,
    Discard,
    Reset,
    Monitor,
    /// What follows is a replication stream.
    Replicate,
    /// `REPLCONF`, of which `ACK` is not answered and is sent inside a replication stream.
    Replconf,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    pub name: &'static str,
    pub key: Key,
    pub lookup: Lookup,
    pub effect: Effect,
}

/// Names by key position.
const KEYS: &[(Key, &str)] = &[
    (
        Key::None,
        "ASKING AUTH BGREWRITEAOF BGSAVE DBSIZE DISCARD ECHO EXEC FAILOVER FLUSHALL FLUSHDB HELLO \
         INFO KEYS LASTSAVE LOLWUT MONITOR MULTI PFSELFTEST PING PSUBSCRIBE PSYNC PUBLISH \
         PUNSUBSCRIBE QUIT RANDOMKEY READONLY READWRITE REPLCONF REPLICAOF RESET ROLE SAVE SCAN \
         SELECT SHUTDOWN SLAVEOF SUBSCRIBE SWAPDB SYNC TIME UNSUBSCRIBE UNWATCH WAIT WAITAOF \
         ACL CLIENT CLUSTER COMMAND CONFIG DEBUG FUNCTION LATENCY MODULE PUBSUB SCRIPT SENTINEL \
         SLOWLOG",
    ),
    (
        Key::At(1),
        "APPEND BITCOUNT BITFIELD BITFIELD_RO BITPOS BLMOVE BLPOP BRPOP BRPOPLPUSH BZPOPMAX \
         BZPOPMIN COPY DECR DECRBY DEL DELEX DIGEST DUMP EXISTS EXPIRE EXPIREAT EXPIRETIME GEOADD \
         GEODIST GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO \
         GEOSEARCH GEOSEARCHSTORE GET GETBIT GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HEXPIRE \
         HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET \
         HMSET HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX HSETNX \
         HSTRLEN HTTL HVALS INCR INCRBY INCRBYFLOAT LCS LINDEX LINSERT LLEN LMOVE LPOP LPOS LPUSH \
         LPUSHX LRANGE LREM LSET LTRIM MGET MOVE MSET MSETNX PERSIST PEXPIRE PEXPIREAT PEXPIRETIME \
         PFADD PFCOUNT PFMERGE PSETEX PTTL RENAME RENAMENX RESTORE RESTORE-ASKING RPOP RPOPLPUSH \
         RPUSH RPUSHX SADD SCARD SDIFF SDIFFSTORE SET SETBIT SETEX SETNX SETRANGE SINTER \
         SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER SMOVE SORT SORT_RO SPOP SPUBLISH SRANDMEMBER \
         SREM SSCAN SSUBSCRIBE STRLEN SUBSTR SUNION SUNIONSTORE SUNSUBSCRIBE TOUCH TTL TYPE UNLINK \
         VADD VCARD VDIM VEMB VGETATTR VINFO VISMEMBER VLINKS VRANDMEMBER VRANGE VREM VSETATTR \
         VSIM WATCH XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX XLEN XPENDING XRANGE XREVRANGE \
         XSETID XTRIM ZADD ZCARD ZCOUNT ZDIFFSTORE ZINCRBY ZINTERSTORE ZLEXCOUNT ZMSCORE ZPOPMAX \
         ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANGESTORE ZRANK ZREM \
         ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE \
         ZREVRANK ZSCAN ZSCORE ZUNIONSTORE",
    ),
    (Key::At(2), "BITOP MEMORY OBJECT PFDEBUG XGROUP XINFO"),
    (Key::At(3), "MIGRATE"),
    (
        Key::AfterCount(1),
        "LMPOP MSETEX SINTERCARD ZDIFF ZINTER ZINTERCARD ZMPOP ZUNION",
    ),
    (
        Key::AfterCount(2),
        "BLMPOP BZMPOP EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO",
    ),
    (Key::AfterStreams, "XREAD XREADGROUP"),
];

/// Lookups whose answer tells hit from miss. For those of a field or an element (`HGET`, `LINDEX`,
/// `ZSCORE`, a range), a key that is there without it is a hit for the server and a miss here; the
/// answer does not tell the two apart. The same goes for a key of another type in `MGET`, and one
/// in other commands, whose answer is an error, is neither here. Sets that are combined, `SORT`, scans, writes and scripts
/// are not counted, though the server may count lookups of theirs.
const LOOKUPS: &[(Lookup, &str)] = &[
    (
        Lookup::Value,
        "DUMP GET GETDEL GETEX GETSET HGET LINDEX SRANDMEMBER ZRANK ZREVRANK ZSCORE",
    ),
    (Lookup::Each, "MGET"),
    (Lookup::Any, "HMGET"),
    (Lookup::Found, "EXISTS TOUCH"),
    (
        Lookup::Positive,
        "HEXISTS HLEN HSTRLEN LLEN SCARD SISMEMBER STRLEN XLEN ZCARD ZCOUNT",
    ),
    (
        Lookup::Rows,
        "GETRANGE HGETALL HKEYS HVALS LRANGE SMEMBERS SUBSTR XRANGE XREVRANGE ZRANGE ZRANGEBYLEX \
         ZRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE",
    ),
    (Lookup::Ttl, "EXPIRETIME PEXPIRETIME PTTL TTL"),
    (Lookup::Type, "TYPE"),
];

const EFFECTS: &[(Effect, &str)] = &[
    (
        Effect::Container,
        "ACL CLUSTER COMMAND CONFIG DEBUG FUNCTION LATENCY MEMORY MODULE OBJECT PUBSUB SCRIPT \
         SENTINEL SLOWLOG XGROUP XINFO",
    ),
    (Effect::Client, "CLIENT"),
    (Effect::Subscribe, "PSUBSCRIBE SSUBSCRIBE SUBSCRIBE"),
    (Effect::Unsubscribe, "PUNSUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE"),
    (Effect::Multi, "MULTI"),
    (Effect::Exec, "EXEC"),
    (Effect::Discard, "DISCARD"),
    (Effect::Reset, "RESET"),
    (Effect::Monitor, "MONITOR"),
    (Effect::Replicate, "PSYNC SYNC"),
    (Effect::Replconf, "REPLCONF"),
];

/// Subcommands of all containers. What is not among them is not shown: it may be anything.
const SUBCOMMANDS: &str = "ADDSLOTS ADDSLOTSRANGE BUMPEPOCH CACHING CAT CHANNELS CKQUORUM CONSUMERS \
    COUNT COUNT-FAILURE-REPORTS COUNTKEYSINSLOT CREATE CREATECONSUMER DEBUG DELCONSUMER DELETE \
    DELSLOTS DELSLOTSRANGE DELUSER DESTROY DOCS DOCTOR DRYRUN DUMP ENCODING EXISTS FAILOVER FLUSH \
    FLUSHCONFIG FLUSHSLOTS FORGET FREQ GENPASS GET GET-MASTER-ADDR-BY-NAME GETKEYS GETKEYSANDFLAGS \
    GETKEYSINSLOT GETNAME GETREDIR GETUSER GRAPH GROUPS HELP HISTOGRAM HISTORY ID IDLETIME INFO \
    IS-MASTER-DOWN-BY-ADDR KEYSLOT KILL LATEST LEN LINKS LIST LOAD LOADEX LOG MALLOC-STATS MASTER \
    MASTERS MEET MONITOR MYID MYSHARDID NO-EVICT NO-TOUCH NODES NUMPAT NUMSUB OBJECT PAUSE \
    PENDING-SCRIPTS PURGE REFCOUNT RELOAD REMOVE REPLICAS REPLICATE REPLY RESET RESETSTAT RESTORE \
    REWRITE SAVE SAVECONFIG SENTINELS SET SET-ACTIVE-EXPIRE SET-CONFIG-EPOCH SETID SETINFO SETNAME \
    SETSLOT SETUSER SHARDCHANNELS SHARDNUMSUB SHARDS SIMULATE-FAILURE SLAVES SLEEP SLOT-STATS SLOTS \
    STATS STREAM TRACKING TRACKINGINFO UNBLOCK UNLOAD UNPAUSE USAGE USERS WHOAMI";

/// Longest name, of commands and subcommands.
const MAX_NAME: usize = 24;

/// Names in capitals as three words, found by a hash: a lookup costs about 5 ns, where a map of
/// strings costs 25 and a comparison without case more.
struct Names {
    slots: Box<[Option<(Words, u16)>; SLOTS]>,
}

type Words = [u64; MAX_NAME / 8];

const SLOTS: usize = 1024;

impl Names {
    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Names {
        let mut slots = Box::new([None; SLOTS]);
        for (index, name) in names.enumerate() {
            let Some(name) = capitals(name.as_bytes()) else {
                continue;
            };
            let mut slot = slot(&name);
            while slots[slot].is_some() {
                slot = (slot + 1) % SLOTS;
            }
            slots[slot] = Some((name, index as u16));
        }
        Names { slots }
    }

    fn index(&self, name: &[u8]) -> Option<u16> {
        let name = capitals(name)?;
        let mut slot = slot(&name);
        while let Some((other, index)) = &self.slots[slot] {
            if *other == name {
                return Some(*index);
            }
            slot = (slot + 1) % SLOTS;
        }
        None
    }
}

fn capitals(name: &[u8]) -> Option<Words> {
    let mut capitals = Words::default();
    if name.len() > MAX_NAME {
        return None;
    }
    for (to, from) in capitals.iter_mut().zip(name.chunks(8)) {
        *to = upper(keys::word(from));
    }
    Some(capitals)
}

/// Eight bytes at once, as [`u8::to_ascii_uppercase`]: the top bit of each of the sums tells whether
/// the byte, taken for ASCII, is `a` or above, and above `z`.
fn upper(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * EACH);
    let from_a = low + (0x80 - b'a' as u64) * EACH;
    let above_z = low + (0x7f - b'z' as u64) * EACH;
    let lower = from_a & !above_z & !word & (0x80 * EACH);
    // 0x20 is the difference of `a` and `A`.
    word ^ lower >> 2
}

fn slot(name: &Words) -> usize {
    let hash = keys::mix(name[0], name[1] ^ name[2].rotate_left(32));
    hash as usize % SLOTS
}

static COMMANDS: LazyLock<(Vec<Command>, Names)> = LazyLock::new(|| {
    let mut commands = Vec::new();
    for (key, names) in KEYS {
        for name in names.split_ascii_whitespace() {
            commands.push(Command {
                name,
                key: *key,
                lookup: of(LOOKUPS, name).unwrap_or(Lookup::None),
                effect: of(EFFECTS, name).unwrap_or(Effect::None),
            });
        }
    }
    let names = Names::of(commands.iter().map(|c| c.name));
    (commands, names)
});

static SUBS: LazyLock<(Vec<&str>, Names)> = LazyLock::new(|| {
    let subs: Vec<&str> = SUBCOMMANDS.split_ascii_whitespace().collect();
    let names = Names::of(subs.iter().copied());
    (subs, names)
});

fn of<T: Copy>(table: &[(T, &str)], name: &str) -> Option<T> {
    let holds = |names: &str| names.split_ascii_whitespace().any(|n| n == name);
    table
        .iter()
        .find(|(_, names)| holds(names))
        .map(|(t, _)| *t)
}

/// The command of a name, in any case, and its number.
pub fn command(name: &[u8]) -> Option<(u16, &'static Command)> {
    let index = COMMANDS.1.index(name)?;
    COMMANDS.0.get(usize::from(index)).map(|c| (index, c))
}

/// The subcommand of a name and its number.
pub fn subcommand(name: &[u8]) -> Option<(u16, &'static str)> {
    let index = SUBS.1.index(name)?;
    SUBS.0.get(usize::from(index)).map(|name| (index, *name))
}

/// The subcommand of a number; `?` if it is not a known one.
pub fn subcommand_name(index: u16) -> &'static str {
    SUBS.0.get(usize::from(index)).copied().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_found_and_lists_name_known_commands_only_and_once() {
        let mut names: Vec<&str> = COMMANDS.0.iter().map(|c| c.name).collect();
        for command in &COMMANDS.0 {
            assert_eq!(super::command(command.name.as_bytes()).unwrap().1, command);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COMMANDS.0.len());
        let of_lookups = LOOKUPS.iter().map(|(_, names)| *names);
        let of_effects = EFFECTS.iter().map(|(_, names)| *names);
        for name in of_lookups
            .chain(of_effects)
            .flat_map(str::split_ascii_whitespace)
        {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(command(b"gEt").unwrap().1.lookup, Lookup::Value);
        assert_eq!(command(b"NOSUCH"), None);
        assert_eq!(command(&[b'A'; 400]), None);
        assert_eq!(subcommand(b"no-evict").unwrap().1, "NO-EVICT");
        assert_eq!(subcommand(b"hunter2"), None);
        for byte in 0..=255 {
            let word = u64::from_le_bytes([byte, b'a', b'z', b'`', b'{', 0xe1, 0xfa, byte]);
            let upper = word.to_le_bytes().map(|b| b.to_ascii_uppercase());
            assert_eq!(super::upper(word).to_le_bytes(), upper);
        }
    }
}
