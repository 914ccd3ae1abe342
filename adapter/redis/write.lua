-- Appends events to streams and stores the record of the place, all or nothing.
-- KEYS: the streams, and then the place if there is one.
-- ARGV: how many streams, MAXLEN or '', then of a placed write owner, writes so far,
-- writes after, record ('' of an unplaced one); and for each event: the number of its
-- stream, its offset, how many arguments follow, fields and values.
local streams, maxlen, placed = tonumber(ARGV[1]), ARGV[2], #KEYS > tonumber(ARGV[1])
local place = KEYS[#KEYS]
if placed then
  local now = redis.call('HMGET', place, 'owner', 'writes')
  if (now[1] or '') ~= ARGV[3] then return {'fenced'} end
  if (now[2] or '0') ~= ARGV[4] then return {'forgot', now[2] or '0'} end
  if not redis.acl_check_cmd('HSET', place, 'f', 'v') then return {'denied', 0, 'HSET'} end
end
for i = 1, streams do
  local t = redis.call('TYPE', KEYS[i]).ok
  if t ~= 'stream' and t ~= 'none' then return {'type', i, t} end
  if not redis.acl_check_cmd('XADD', KEYS[i], '*', 'f', 'v') then return {'denied', i, 'XADD'} end
  if not redis.acl_check_cmd('XDEL', KEYS[i], '0-1') then return {'denied', i, 'XDEL'} end
  if not redis.acl_check_cmd('XINFO', 'STREAM', KEYS[i]) then return {'denied', i, 'XINFO'} end
end

local call, unpack, tonumber, type = redis.pcall, unpack, tonumber, type
local add = function(stream, ms, from, to) return call('XADD', stream, ms .. '-*', unpack(ARGV, from, to)) end
if maxlen ~= '' then
  add = function(stream, ms, from, to) return call('XADD', stream, 'MAXLEN', '~', maxlen, ms .. '-*', unpack(ARGV, from, to)) end
end

-- newest is the first part of the last id that a stream gave, kept by the server
-- even if the entry is gone.
local function newest(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^%d+') end
  end
end

local late, where, ids = {}, {}, {} -- late: of streams whose ids are beyond our offsets
local argv = ARGV
local at, last, event = 7, #argv, 0
while at < last do
  event = event + 1
  local i = tonumber(argv[at])
  local stream, ms, from, to = KEYS[i], argv[at + 1], at + 3, at + 2 + tonumber(argv[at + 2])
  local ahead = late[i]
  if ahead and (#ms < #ahead or #ms == #ahead and ms <= ahead) then ms = ahead end
  local id = add(stream, ms, from, to)
  if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then
    late[i] = newest(stream)
    id = add(stream, late[i], from, to)
  end
  if type(id) == 'table' then -- as if nothing had been
    for n = event - 1, 1, -1 do redis.call('XDEL', where[n], ids[n]) end
    return {'failed', event, id.err}
  end
  where[event], ids[event] = stream, id
  at = to + 1
end
if placed then redis.call('HSET', place, 'record', ARGV[6], 'writes', ARGV[5]) end
return {'ok'}
