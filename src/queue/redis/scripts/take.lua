-- take(members...) -> for each, 1 if it was there: out of another service's schedule, the only key, which
-- may lie in another slot. Stands alone, without the head of the moves.
local taken = {}
for i, member in ipairs(ARGV) do taken[i] = redis.call('ZREM', KEYS[1], member) end
return taken
