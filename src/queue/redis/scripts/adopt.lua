-- adopt(hold, seen, bytes...) -> ids: what another service has scheduled is kept here before it is taken
-- there; due after `hold`, should nobody say more of it.
local hold, seen = assert(tonumber(ARGV[1])), assert(tonumber(ARGV[2]))
local n = #ARGV - 2
check_types()
if n == 0 then return {} end
open_for_writing()
local last, ids = next_numbers(n, seen), {}
for i = 1, n do
  ids[i] = sixteen(last + i)
  redis.call('HSET', MESSAGES, ids[i], ARGV[i + 2])
  redis.call('ZADD', RETRY, now + hold, ids[i])
end
return ids
