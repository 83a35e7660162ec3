-- join(lease ms, old number or '', highest number seen) -> {number, what became of the old one, by how many ms the
-- clock is behind the last beat of any agent, odd entries}: registers a new agent. The old one is 'recovered',
-- 'registered' still, or '': nothing is known of it, for Redis lost it.
local lease, old, seen = assert(tonumber(ARGV[1])), ARGV[2], assert(tonumber(ARGV[3]))
check_types()
local fate = ''
if old ~= '' and redis.call('ZSCORE', AGENTS, old) then fate = 'registered'
elseif old ~= '' and was_recovered(old) then fate = 'recovered' end
open_for_writing()
-- While the counter is well ahead of the clock, what was lost of it cannot be told: others may know higher numbers.
if last_number() > now_us + MARGIN then next_numbers(margin(), seen) end
local number = sixteen(next_numbers(1, seen) + 1)
redis.call('ZADD', AGENTS, now + lease, number)
-- Its longest delay comes with its first beat.
redis.call('HSET', CALLS, 'l' .. number, string.format('%.0f 0', lease))
local beaten = tonumber(redis.call('HGET', CALLS, 'clock') or '0')
if not beaten or beaten < 0 or beaten >= HIGHEST then beaten, odd = 0, odd + 1 end
return {number, fate, math.max(0, beaten - now), odd}
