-- restore(me, {id, bytes}...) -> {state, id...}: what Redis has lost and the agent still holds is here
-- again, in flight under `me`. Answers which of them are; the others are somewhere else.
local me, highest = ARGV[1], 0
for i = 2, #ARGV, 2 do
  assert(string.match(ARGV[i], '^%d+$') and #ARGV[i] == 16 and ARGV[i + 1])
  highest = math.max(highest, tonumber(ARGV[i]))
end
check_types()
if not redis.call('ZSCORE', AGENTS, me) then return {'gone'} end
open_for_writing()
if last_number() < highest and highest < HIGHEST then next_numbers(0, highest) end
local out = {'ok'}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  if redis.call('HEXISTS', MESSAGES, id) == 0 then
    redis.call('HSET', MESSAGES, id, ARGV[i + 1])
    redis.call('ZADD', INFLIGHT, me, id)
  end
  local owner = redis.call('ZSCORE', INFLIGHT, id)
  if owner and tonumber(owner) == tonumber(me) then out[#out + 1] = id end
end
return out
